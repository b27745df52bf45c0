package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/daemon/failpoint"
)

// striker kills. A daemon that reaches its armed failpoint tells it and stands
// still there until it is killed itself or has been told of its next point.
type striker struct {
	campaign *campaign
	listener *net.UnixListener
	socket   string

	mu      sync.Mutex // one strike at a time
	strikes []strike   // what is left of the round's plan
	works   []*work    // what the round does; nil: nothing is struck now

	libvirtd sync.WaitGroup // libvirtd is being started

	figures sync.Mutex // of what follows; held for moments only
	kills   map[string]int
	log     []string  // every kill, for whoever looks at a violation
	last    time.Time // when something was last killed, or libvirtd came up again
}

// idle arms a daemon while nothing shall be struck: it asks now and then.
const idle = "*:20"

func newStriker(dir string) (*striker, error) {
	socket := filepath.Join(dir, "failpoint")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return &striker{listener: l, socket: socket, kills: map[string]int{}}, nil
}

func (s *striker) close() { s.listener.Close() }

// environment arms a daemon that is about to start.
func (s *striker) environment() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []string{failpoint.Variable + "=" + s.next(), failpoint.Variable + "_SOCKET=" + s.socket}
}

// next is where the next strike is to be.
func (s *striker) next() string {
	if s.works == nil || len(s.strikes) == 0 {
		return idle
	}
	return s.strikes[0].at
}

// begin lets a round's strikes begin, end lets no more happen.
func (s *striker) begin(strikes []strike, works []*work) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strikes, s.works = strikes, works
}

// end also waits until everything that was killed is up again, but for the daemon.
func (s *striker) end() {
	s.begin(nil, nil)
	s.libvirtd.Wait()
}

// struck is the number of kills, and when the last was.
func (s *striker) struck() (int, time.Time) {
	s.figures.Lock()
	defer s.figures.Unlock()
	sum := 0
	for _, n := range s.kills {
		sum += n
	}
	return sum, s.last
}

// serve answers the daemons at their failpoints until the listener is closed.
func (s *striker) serve(ctx context.Context) {
	for {
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			return
		}
		s.held(ctx, conn)
		conn.Close()
	}
}

// held is called with a daemon that is held at a failpoint.
func (s *striker) held(ctx context.Context, conn *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return // it died of another strike
	}
	point := strings.TrimSpace(line)
	if s.works == nil || len(s.strikes) == 0 {
		fmt.Fprintln(conn, s.next())
		return
	}
	now := s.strikes[0]
	s.strikes = s.strikes[1:]
	if err := s.strike(ctx, now, point, conn); err != nil {
		s.campaign.violated(err)
	}
}

// suddenly strikes at no point in particular.
func (s *striker) suddenly(ctx context.Context, now strike) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.works == nil {
		return
	}
	if err := s.strike(ctx, now, "", nil); err != nil {
		s.campaign.violated(err)
	}
}

// strike kills what the strike is for: QEMU first, the daemon last, so that
// nobody notices before all are dead. What was killed is started again.
func (s *striker) strike(ctx context.Context, now strike, point string, conn *net.UnixConn) error {
	c := s.campaign
	switch now.target {
	case restart:
		return s.restartLibvirtd(ctx, point, conn)
	case withinCall:
		return s.cutCall(ctx, now, point, conn)
	}
	var hit []string
	if now.target.hits(qemuOnly) {
		if w := s.workAt(point); c.site.Lab.KillQEMU(w.victim.name) == nil {
			w.killed = true
			hit = append(hit, string(qemuOnly))
		}
	}
	if now.target.hits(libvirtdOnly) {
		s.libvirtd.Wait()
		if err := c.site.Lab.KillLibvirtd(); err != nil {
			return fmt.Errorf("libvirtd had died by itself: %w", err)
		}
		hit = append(hit, string(libvirtdOnly))
	}
	if now.target.hits(daemonOnly) {
		dead, err := s.killDaemon(conn)
		if err != nil {
			return err
		}
		if dead {
			hit = append(hit, string(daemonOnly))
		}
	}
	for _, one := range hit {
		s.count(one, point)
	}
	err := c.midway(ctx, s.works)
	if conn != nil && !now.target.hits(daemonOnly) {
		fmt.Fprintln(conn, s.next())
	}
	if now.target.hits(libvirtdOnly) {
		s.libvirtd.Go(func() { s.startLibvirtd(ctx) })
	}
	return err
}

// restartLibvirtd ends libvirtd as systemd does in an upgrade, and starts it again.
func (s *striker) restartLibvirtd(ctx context.Context, point string, conn *net.UnixConn) error {
	s.libvirtd.Wait()
	if err := s.campaign.site.Lab.EndLibvirtd(ctx); err != nil {
		return err
	}
	s.count(string(restart), point)
	s.libvirtd.Go(func() { s.startLibvirtd(ctx) })
	if conn != nil {
		fmt.Fprintln(conn, s.next())
	}
	return nil
}

// cutWithin is how long a call has to come to the moment at which libvirtd is to die.
const cutWithin = 2 * time.Second

// cutCall lets the daemon make its call, in the middle of which libvirtd dies.
func (s *striker) cutCall(ctx context.Context, now strike, point string, conn *net.UnixConn) error {
	s.libvirtd.Wait()
	armed, err := s.campaign.site.Lab.StrikeLibvirtd(ctx, "", now.call, now.nth, syscall.SIGKILL)
	if err != nil {
		return err
	}
	if conn != nil {
		fmt.Fprintln(conn, s.next())
	}
	s.libvirtd.Go(func() {
		select {
		case <-armed.Ended():
		case <-ctx.Done():
		case <-time.After(cutWithin):
		}
		if err := armed.Close(); err != nil || !armed.Struck() {
			return
		}
		s.count(string(withinCall), point)
		s.startLibvirtd(ctx)
	})
	return nil
}

func (s *striker) startLibvirtd(ctx context.Context) {
	if err := s.campaign.site.Lab.StartLibvirtd(ctx); err != nil && ctx.Err() == nil {
		s.campaign.violated(err)
	}
	s.figures.Lock()
	defer s.figures.Unlock()
	s.last = time.Now()
}

// killDaemon kills the daemon at the other end of conn, or the present one.
func (s *striker) killDaemon(conn *net.UnixConn) (bool, error) {
	if conn == nil {
		select {
		case <-s.campaign.site.DaemonEnded():
			return false, nil // it has just been killed, and is being started
		default:
			return true, s.campaign.site.KillDaemon()
		}
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	var peer *unix.Ucred
	err1 := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err1, err); err != nil {
		return false, err
	}
	err = syscall.Kill(int(peer.Pid), syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return false, nil // it was killed at random in the same moment
	}
	if err != nil {
		return false, err
	}
	_, _ = conn.Read(make([]byte, 1)) // returns when the process is gone
	return true, nil
}

// workAt is the work that a failpoint most likely belongs to.
func (s *striker) workAt(point string) *work {
	kind, _, _ := strings.Cut(point, "/")
	for _, w := range s.works {
		if w.operation() == kind {
			return w
		}
	}
	return s.works[0]
}

func (s *striker) count(what, point string) {
	name := what + " at " + point
	if point == "" {
		name = what + " at random"
	}
	s.figures.Lock()
	defer s.figures.Unlock()
	s.last = time.Now()
	s.kills[name]++
	s.log = append(s.log, time.Now().Format("15:04:05.000 ")+name)
}
