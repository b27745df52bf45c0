//go:build failpoints

package failpoint

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Enabled reports whether this program was built with failpoints.
const Enabled = true

var (
	mu      sync.Mutex
	armed   = parse(os.Getenv(Variable))
	socket  = os.Getenv(Variable + "_SOCKET")
	visits  = map[string]int{}
	observe func(ctx context.Context, name string)
)

type arming struct {
	name string
	at   int
}

func parse(text string) arming {
	name, count, found := strings.Cut(text, ":")
	at, err := strconv.Atoi(count)
	if !found || err != nil {
		at = 1
	}
	return arming{name, at}
}

// Observe makes f be told of every visit, nil nobody. For tests within the process.
func Observe(f func(ctx context.Context, name string)) {
	mu.Lock()
	defer mu.Unlock()
	observe = f
}

// Hit visits a point.
func Hit(ctx context.Context, effect, when string) {
	name := Name(ctx, effect, when)
	mu.Lock()
	visits[name]++
	visits["*"]++
	strike := armed.name != "" && (armed.name == name || armed.name == "*") && visits[armed.name] == armed.at
	if strike {
		armed = arming{}
	}
	told := observe
	mu.Unlock()
	if told != nil {
		told(ctx, name)
	}
	switch {
	case !strike:
	case socket != "":
		hold(name)
	default:
		// As sudden as it gets: no deferred call runs, no buffer is written.
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// hold tells that name is visited and waits for the answer, which arms
// the next point. When nobody listens any more there is nothing to wait for.
func hold(name string) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, name); err != nil {
		return
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	mu.Lock()
	defer mu.Unlock()
	armed = parse(strings.TrimSpace(answer))
	clear(visits)
}

// Around visits the points before and after an effect.
func Around(ctx context.Context, effect string, do func() error) error {
	Hit(ctx, effect, "before")
	err := do()
	Hit(ctx, effect, "after")
	return err
}
