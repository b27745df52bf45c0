package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync/atomic"

	"vpssnapd/daemon"
	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/vps"
	"vpssnapd/systemd"
)

// reloader reads the configuration again when it is asked to. follow runs in one
// goroutine; nothing else touches running.
type reloader struct {
	path  string
	log   *slog.Logger
	level *slog.LevelVar
	// apply gives the daemon its settings.
	apply        func(daemon.Settings)
	certificates *certificates
	mailer       *mail.Mailer // nil without mail
	running      config       // as it counts now
	// judged is what Doctor judges the files of.
	judged atomic.Pointer[config]
}

// readFiles reads all that the configuration names, as it is at the start.
func (r *reloader) readFiles(ctx context.Context) (err error) {
	if err := errors.Join(r.running.judge(ctx, r.path)...); err != nil {
		return err
	}
	if r.certificates, err = r.running.TLS.load(ctx); err != nil {
		return err
	}
	r.mailer, err = r.running.Mail.open(ctx)
	r.judge(r.running)
	return err
}

// judge has the files of a configuration judged from now on.
func (r *reloader) judge(c config) { r.judged.Store(&c) }

// judgeFiles returns what is wrong with the files of the configuration that counts.
func (r *reloader) judgeFiles(ctx context.Context) []error { return r.judged.Load().judge(ctx, r.path) }

// follow reads the configuration anew at each signal, until ctx ends.
func (r *reloader) follow(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		// systemctl reload returns with the Ready below, also when the file was refused;
		// the log says so.
		systemd.Reloading()
		err := r.reload(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.log.Error("the configuration stays as it was", vps.LogEvent(vps.LogConfigRefused), "error", err)
		}
		systemd.Ready()
	}
}

// reload lets count what has changed in the file, or nothing of it.
func (r *reloader) reload(ctx context.Context) error {
	next, err := readConfig(ctx, r.path)
	if err != nil {
		return err
	}
	if err := errors.Join(next.judge(ctx, r.path)...); err != nil {
		return err
	}
	mailer, err := next.Mail.open(ctx)
	if err != nil {
		return err
	}
	was := r.running
	// Switching TLS on or off takes another listener, so a restart.
	if was.TLS.on() && next.TLS.on() {
		if err := r.certificates.use(ctx, next.TLS); err != nil {
			return err
		}
		r.running.TLS = next.TLS
	}
	r.running.LogLevel, r.running.Snapshot, r.running.Merge, r.running.Offer = next.LogLevel, next.Snapshot, next.Merge, next.Offer
	r.running.Images = next.Images
	r.running.Mail.RemindBefore, r.running.Retention = next.Mail.RemindBefore, next.Retention
	// The same for mail: the outbox knows at the start whether there is any.
	if r.mailer != nil && mailer != nil {
		r.mailer.Become(mailer)
		r.running.Mail = next.Mail
	}
	r.level.Set(next.LogLevel)
	r.judge(r.running)
	r.apply(next.settings())
	r.log.Info("configuration read anew", "file", r.path, "changed", strings.Join(differing(was, r.running), " "))
	// An operator must not believe that a change counts.
	if later := differing(r.running, next); len(later) > 0 {
		r.log.Warn("what was changed in the configuration counts after a restart only", "keys", strings.Join(later, " "))
	}
	return nil
}

// differing names the keys by which two configurations differ. Keys only: values may be
// secrets.
func differing(a, b config) []string {
	var keys []string
	before := map[string]any{}
	eachKey(reflect.ValueOf(a), "", func(key string, value any) { before[key] = value })
	eachKey(reflect.ValueOf(b), "", func(key string, value any) {
		if !same(before[key], value) {
			keys = append(keys, key)
		}
	})
	return keys
}

// same reports whether two values of a key are equal; an empty list is no list.
func same(a, b any) bool {
	// TOML tells [] from a missing key, we do not.
	empty := func(v any) bool { return reflect.TypeOf(v).Kind() == reflect.Slice && reflect.ValueOf(v).Len() == 0 }
	return reflect.DeepEqual(a, b) || empty(a) && empty(b)
}

// eachKey visits every key of a configuration with its value, as in tls.cert. By
// reflection, so that a new key cannot be forgotten here.
func eachKey(v reflect.Value, section string, visit func(key string, value any)) {
	for i := range v.NumField() {
		key := section + v.Type().Field(i).Tag.Get("toml")
		if field := v.Field(i); field.Kind() == reflect.Struct {
			eachKey(field, key+".", visit)
		} else {
			visit(key, field.Interface())
		}
	}
}

// checkConfig reads the configuration, and the files that it names, as a start would.
// Exit code 0 means that a start would get past the configuration.
func checkConfig(path string) error {
	ctx := context.Background()
	c, err := readConfig(ctx, path)
	if err != nil {
		return err
	}
	if err := errors.Join(c.judge(ctx, path)...); err != nil {
		return err
	}
	if _, err := c.TLS.load(ctx); err != nil {
		return err
	}
	if c.Mail.withCredential() {
		fmt.Fprintln(stdout, "The password of [mail] is a credential of the unit, which only the daemon has: not checked.")
		c.Mail.Username, c.Mail.PasswordFile = "", ""
	}
	if _, err := c.Mail.open(ctx); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s can be used.\n", path)
	return nil
}
