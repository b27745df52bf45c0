package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	"vpssnapd/cmd/internal/site"
)

// limit is how long the scenes may take together.
const limit = 3 * time.Minute

// guest is the name of the demo's VPS.
const guest = "web1"

// scene is one thing to be shown.
type scene struct {
	headline string
	play     func(*play)
}

// play is the demo on its way. Its methods do nothing once something was not as
// expected, so that a scene reads like the session that it shows.
type play struct {
	out  io.Writer
	bin  string
	site *site.Site
	ctx  context.Context
	err  error

	shown   int
	timings []timing
	proofs  []string

	// What later scenes compare with.
	libvirtd     int    // its process
	qemu         int    // the process that runs the VPS
	image        string // the VPS's disk without a snapshot
	snapshot     string // its id
	acknowledged int    // the last record before the restore
}

type timing struct {
	headline string
	took     time.Duration
}

// perform plays scenes until one fails.
func (p *play) perform(ctx context.Context, list []scene) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p.ctx = ctx
	for _, s := range list {
		p.shown++
		fmt.Fprintf(p.out, "\n%s\n", text.Bold.Sprintf("== %d. %s", p.shown, s.headline))
		start := time.Now()
		s.play(p)
		took := time.Since(start)
		if p.err != nil {
			return p.failure(s)
		}
		fmt.Fprintln(p.out, text.Faint.Sprintf("-- %.1f s", took.Seconds()))
		p.timings = append(p.timings, timing{s.headline, took})
	}
	return nil
}

func (p *play) failure(s scene) error {
	if errors.Is(p.ctx.Err(), context.Canceled) {
		return errInterrupted
	}
	err := fmt.Errorf("scene %d, %q: %w", p.shown, s.headline, p.err)
	if p.site != nil {
		err = fmt.Errorf("%w\nThe daemon's log ends with:\n%s", err, p.site.DaemonLog())
	}
	return err
}

// expect stops the demo unless ok.
func (p *play) expect(ok bool, format string, args ...any) {
	if !ok && p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// check stops the demo at an error.
func (p *play) check(err error) { p.expect(err == nil, "%w", err) }

// note is a remark that is no output of a program.
func (p *play) note(format string, args ...any) {
	if p.err == nil {
		fmt.Fprintln(p.out, text.FgCyan.Sprintf("# "+format, args...))
	}
}

// prove is a remark that the summary repeats.
func (p *play) prove(format string, args ...any) {
	p.note(format, args...)
	p.proofs = append(p.proofs, fmt.Sprintf(format, args...))
}

func (p *play) prompt(prompt, line string) {
	fmt.Fprintln(p.out, text.Bold.Sprint(prompt+line))
}

// environment is what a person would export to talk to the demo's host.
func (p *play) environment() []string {
	return []string{
		"PATH=" + p.bin + ":" + os.Getenv("PATH"),
		"VPSSNAP_SOCKET=" + p.site.Socket(),
		"LIBVIRT_DEFAULT_URI=" + p.site.Lab.URI(),
	}
}

// shell runs a program as typed at the prompt, shows and returns what it prints,
// and expects its exit code.
func (p *play) shell(code int, args ...string) string { return p.dialogue(code, nil, args...) }

// vpssnap is shell for our CLI.
func (p *play) vpssnap(code int, args ...string) string {
	return p.shell(code, append([]string{"vpssnap"}, args...)...)
}

// dialogue is shell with a keyboard; nil is none.
func (p *play) dialogue(code int, keys *keyboard, args ...string) string {
	if p.err != nil {
		return ""
	}
	line := quote(args)
	p.prompt("$ ", line)
	program := args[0]
	if ours := filepath.Join(p.bin, program); program == "vpssnap" {
		program = ours
	}
	var printed strings.Builder
	cmd := exec.CommandContext(p.ctx, program, args[1:]...)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), p.environment()...)
	// One writer for both keeps the order in which a person would see them.
	both := io.MultiWriter(p.out, &printed)
	if keys != nil {
		cmd.Stdin = keys.terminal
		both = io.MultiWriter(both, keys)
	}
	cmd.Stdout, cmd.Stderr = both, both
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.check(fmt.Errorf("cannot run %s: %w", line, err))
		return ""
	}
	got := cmd.ProcessState.ExitCode()
	if got > 0 {
		p.note("exit code %d", got)
	}
	p.expect(got == code, "%s ended with exit code %d, expected %d", line, got, code)
	return printed.String()
}

// answering is vpssnap with somebody at the terminal who types answer.
func (p *play) answering(answer string, code int, args ...string) string {
	keys, err := newKeyboard(p.out, "to go on: ", answer)
	if err != nil {
		p.check(err)
		return ""
	}
	printed := p.dialogue(code, keys, append([]string{"vpssnap"}, args...)...)
	p.check(keys.Close())
	p.expect(p.err != nil || keys.typed, "vpssnap did not ask")
	return printed
}

// in types a line at the guest's prompt, through its agent.
func (p *play) in(code int, line string) string {
	if p.err != nil {
		return ""
	}
	p.prompt("guest# ", line)
	printed, got, err := p.site.Lab.GuestExec(p.ctx, guest, "sh", "-c", "exec 2>&1; cd /mnt/vda; "+line)
	fmt.Fprint(p.out, printed)
	p.check(err)
	p.expect(got == code, "%s in the guest ended with exit code %d, expected %d", line, got, code)
	return printed
}

// says expects words in what was printed.
func (p *play) says(printed string, words ...string) {
	for _, w := range words {
		p.expect(strings.Contains(printed, w), "expected to read %q", w)
	}
}

func quote(args []string) string {
	quoted := slices.Clone(args)
	for i, a := range quoted {
		if strings.ContainsAny(a, " '\"$&;|<>*?()") {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
