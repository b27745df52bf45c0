// Package bustest gives a test a system bus of its own, so that it stays away from
// the machine's.
package bustest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// systemBus is like the policy of every system bus: nothing may be owned or called
// that no service's own policy permits.
const systemBus = `<busconfig>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <policy user="root">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <include>%s</include>
</busconfig>
`

// Bus is a dbus-daemon, until the test ends.
type Bus struct {
	// Address is what DBUS_SYSTEM_BUS_ADDRESS has to say.
	Address string

	t      testing.TB
	config string
	daemon *exec.Cmd
	stop   func()
	said   bytes.Buffer // read when the daemon has ended
}

// New starts a bus with the policy of one service.
func New(t testing.TB, policy string) *Bus {
	t.Helper()
	dir, err := os.MkdirTemp("", "vpssnap-bus")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755)) //nolint:gosec // others shall connect
	policy, err = filepath.Abs(policy)
	check(t, err)
	b := &Bus{t: t, Address: "unix:path=" + dir + "/bus", config: dir + "/bus.conf"}
	check(t, os.WriteFile(b.config, fmt.Appendf(nil, systemBus, dir+"/bus", policy), 0o600))
	b.Start()
	t.Cleanup(func() {
		b.Stop()
		if t.Failed() {
			t.Log(b.said.String())
		}
	})
	return b
}

// Start starts the bus, after a Stop, and returns when it listens.
func (b *Bus) Start() {
	b.t.Helper()
	b.daemon = exec.CommandContext(
		context.Background(), "dbus-daemon", "--config-file="+b.config, "--nofork", "--nopidfile", "--print-address",
	)
	b.daemon.Stderr = &b.said
	out, err := b.daemon.StdoutPipe()
	check(b.t, err)
	check(b.t, b.daemon.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	check(b.t, err)
	b.stop = sync.OnceFunc(func() {
		check(b.t, b.Signal(os.Kill))
		_ = b.daemon.Wait() // killed
	})
}

// Stop kills the bus; a second time it does nothing.
func (b *Bus) Stop() { b.stop() }

// Signal sends the bus a signal.
func (b *Bus) Signal(s os.Signal) error { return b.daemon.Process.Signal(s) }

// As connects as a user of the host: the kernel tells the bus who the thread is.
// Only root can be others.
func (b *Bus) As(uid int) *dbus.Conn {
	b.t.Helper()
	type result struct {
		conn *dbus.Conn
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			made <- result{nil, errno}
			return
		}
		conn, err := dbus.Dial(b.Address)
		made <- result{conn, err}
	}()
	r := <-made
	check(b.t, r.err)
	b.t.Cleanup(func() { r.conn.Close() })
	check(b.t, r.conn.Auth([]dbus.Auth{dbus.AuthExternal(fmt.Sprint(uid))}))
	check(b.t, r.conn.Hello())
	return r.conn
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
