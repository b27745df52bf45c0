//go:build failpoints

package failpoint

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Enabled says whether this program was built with failpoints.
const Enabled = true

// Variable names the environment variable that arms the points: "NAME" or
// "NAME:N" kills the process at the N-th visit of that point, "*:N" at the N-th
// visit of any. A file named by Variable+"_LOG" gets a line for each visit.
const Variable = "VPSSNAP_FAILPOINT"

var (
	mu      sync.Mutex
	armed   = parse(os.Getenv(Variable))
	visits  = map[string]int{}
	log     = openLog(os.Getenv(Variable + "_LOG"))
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

func openLog(path string) *os.File {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil
	}
	return f
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
	die := armed.name != "" && (armed.name == name || armed.name == "*") && visits[armed.name] == armed.at
	if log != nil {
		fmt.Fprintln(log, name)
	}
	told := observe
	mu.Unlock()
	if told != nil {
		told(ctx, name)
	}
	if die {
		// As sudden as it gets: no deferred call runs, no buffer is written.
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// Around visits the points before and after an effect.
func Around(ctx context.Context, effect string, do func() error) error {
	Hit(ctx, effect, "before")
	err := do()
	Hit(ctx, effect, "after")
	return err
}
