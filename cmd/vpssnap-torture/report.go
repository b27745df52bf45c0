package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"vpssnapd/daemon/failpoint"
)

// lastKills is how many kills are told with a violation.
const lastKills = 20

// explain makes of what went wrong all that is needed to repeat and understand it.
func (c *campaign) explain(ctx context.Context, p plan, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
		if errors.Is(cause, context.Canceled) {
			return err // somebody stopped the campaign
		}
	}
	c.striker.figures.Lock()
	log := c.striker.log
	c.striker.figures.Unlock()
	log = log[max(0, len(log)-lastKills):]
	var turns []string
	for _, t := range p.turns {
		v := c.victims[t.victim]
		turns = append(turns, fmt.Sprintf("%s (%s, %d disks)", v.name, v.state, len(v.targets)))
	}
	return fmt.Errorf("violation in round %d, with %s: %w\n\nthe last kills:\n%s\n\nthe daemon's log:\n%s",
		c.rounds+1, strings.Join(turns, ", "), err, strings.Join(log, "\n"), c.daemonLog())
}

// daemonLog is the end of what the daemon said, without the decoys, which it
// finds again at each start.
func (c *campaign) daemonLog() string {
	var lines []string
	for line := range strings.Lines(c.site.DaemonLog()) {
		if !slices.ContainsFunc(decoys, func(name string) bool { return strings.Contains(line, name+" ") }) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// report prints the kills by target and failpoint.
func (c *campaign) report() {
	total, _ := c.striker.struck()
	operations := 0
	for _, n := range c.outcomes {
		operations += n
	}
	fmt.Printf("\n%d rounds, %d operations, %d kills in %s (%.0f a minute)\n", c.rounds, operations, total,
		c.took.Round(time.Second), float64(total)/c.took.Minutes())
	targets, points := map[string]int{}, map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(c.striker.kills)) {
		n := c.striker.kills[name]
		fmt.Printf("%6d  %s\n", n, name)
		what, point, _ := strings.Cut(name, " at ")
		targets[what] += n
		points[point] = true
	}
	points["random"] = true
	for _, what := range slices.Sorted(maps.Keys(targets)) {
		fmt.Printf("%s: %d kills\n", what, targets[what])
	}
	for _, what := range slices.Sorted(maps.Keys(c.spent)) {
		fmt.Printf("%3.0f %% of the time: %s\n", 100*c.spent[what].Seconds()/c.took.Seconds(), what)
	}
	fmt.Printf("%d of %d failpoints\n", len(points)-1, len(failpoint.Points()))
	for _, outcome := range slices.Sorted(maps.Keys(c.outcomes)) {
		fmt.Printf("%6d  %s\n", c.outcomes[outcome], outcome)
	}
	if c.os != nil {
		fmt.Printf("of these, of the guest with an operating system: %v\n", c.os.done)
	}
}
