package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// campaign is one layout's record and the cuts in it.
type campaign struct {
	stage   *stage
	bin     string
	seed    uint64
	base    string // the device as it was at the last flush before the next cut
	applied int    // entries that base has
	record  *record
	victims []*victim
	// Between these lengths of the log the scenario ran.
	began, ended int64
	outcomes     map[string]int
}

// campaignOn records once, cuts, and returns how many violations it found.
func campaignOn(ctx context.Context, l layout, work, bin string, seed uint64, cuts int) (violations int, err error) {
	dir := filepath.Join(work, fmt.Sprint(l.partitions()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := &campaign{
		stage: &stage{
			layout: l,
			dir:    dir,
		}, bin: bin, seed: seed, base: filepath.Join(dir, "base"), outcomes: map[string]int{},
	}
	log, err := c.makeRecord(ctx)
	if err != nil {
		return 0, fmt.Errorf("cannot record on %s: %w", l.name, err)
	}
	defer log.Close()
	if c.record, err = readLog(log); err != nil {
		return 0, err
	}
	// Many cuts of one record: to record takes a minute, to cut a second.
	chosen := c.choose(cuts)
	fmt.Printf("%s, seed %d: %d writes and flushes recorded, %d cuts\n", l.name, seed, len(c.record.entries), len(chosen))
	began := time.Now()
	for _, n := range chosen {
		wrong, err := c.cut(ctx, n)
		if ctx.Err() != nil {
			return violations, ctx.Err()
		}
		if err != nil {
			return violations, fmt.Errorf("cannot try cut %d: %w", n, err)
		}
		if wrong != nil {
			violations++
			fmt.Printf(
				"VIOLATION on %s at cut %d, seed %d, %s: %v\n", l.name, n, seed, label(c.victims, c.record.length(n)),
				wrong,
			)
		}
	}
	c.report(len(chosen), violations, time.Since(began))
	return violations, nil
}

// makeRecord plays the scenario on a recorded device and returns its log.
func (c *campaign) makeRecord(ctx context.Context) (log *os.File, err error) {
	image := filepath.Join(c.stage.dir, "image")
	if err := c.stage.format(ctx, image); err != nil {
		return nil, err
	}
	// The replay begins with the empty device, before any recorded write.
	if err := tool(ctx, "cp", "--sparse=always", image, c.base); err != nil {
		return nil, err
	}
	r, err := startRecorder(ctx, c.stage.dir, image)
	if err != nil {
		return nil, err
	}
	err = c.stage.mount(ctx, r.device)
	if err == nil {
		err = errors.Join(c.playOn(ctx, r), c.stage.unmount())
	}
	if err := errors.Join(err, r.stop(), os.Remove(image)); err != nil {
		return nil, err
	}
	return os.Open(r.log)
}

func (c *campaign) playOn(ctx context.Context, r *recorder) (err error) {
	s := &scenario{now: r.now, random: rand.New(rand.NewPCG(c.seed, 0))} //nolint:gosec // a seed that can be repeated
	if s.site, err = openSite(ctx, c.stage, c.bin); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.site.Close()) }()
	if err := s.populate(ctx); err != nil {
		return err
	}
	// What was prepared is not cut: it must be on the device before the first cut.
	if err := c.stage.sync(ctx); err != nil {
		return err
	}
	if c.began, err = r.now(); err != nil {
		return err
	}
	if err := s.play(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, s.site.DaemonLog())
	}
	c.victims = s.victims
	c.ended, err = r.now()
	return err
}

// choose picks the cuts, as numbers of entries that were written. Each step of
// each operation gets its turn, and in each the places around flushes come first.
func (c *campaign) choose(limit int) []int {
	source := rand.New(rand.NewPCG(c.seed, 1)) //nolint:gosec // a seed that can be repeated
	groups := map[string][]int{}
	all := 0
	for n := 1; n <= len(c.record.entries); n++ {
		if at := c.record.length(n); at > c.began && at <= c.ended {
			name := label(c.victims, at)
			groups[name] = append(groups[name], n)
			all++
		}
	}
	names := slices.Sorted(maps.Keys(groups))
	for _, name := range names {
		source.Shuffle(len(groups[name]), func(i, j int) {
			groups[name][i], groups[name][j] = groups[name][j], groups[name][i]
		})
		slices.SortStableFunc(groups[name], func(a, b int) int { return cmp.Compare(c.distance(a), c.distance(b)) })
	}
	source.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	if limit == 0 {
		limit = all
	}
	var chosen []int
	for len(chosen) < min(limit, all) {
		for _, name := range names {
			if left := groups[name]; len(left) > 0 && len(chosen) < limit {
				chosen, groups[name] = append(chosen, left[0]), left[1:]
			}
		}
	}
	// In the order of the record, so that the base only moves forward.
	slices.Sort(chosen)
	return chosen
}

// distance is 0 just before and just after a flush, else 1.
func (c *campaign) distance(n int) int {
	entries := c.record.entries
	if entries[n-1].flushes() || n < len(entries) && entries[n].flushes() {
		return 0
	}
	return 1
}

// cut makes the device as it was after n entries, starts everything on it, and
// returns what is wrong. err is for what keeps the cut from being tried.
func (c *campaign) cut(ctx context.Context, n int) (wrong, err error) {
	device := filepath.Join(c.stage.dir, "replayed")
	if err := c.replay(ctx, n, device); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(device)) }()
	if err := c.stage.mount(ctx, device); err != nil {
		// A file system that cannot be mounted is a violation, not a fault of the
		// campaign.
		return err, nil
	}
	defer func() { err = errors.Join(err, c.stage.unmount()) }()
	return c.examine(ctx, n), nil
}

// replay makes device as it was after n entries. At every second cut, by
// chance, the device keeps only some of what was not flushed.
func (c *campaign) replay(ctx context.Context, n int, device string) error {
	flushed := c.record.lastFlush(n)
	base, err := os.OpenFile(c.base, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = c.record.apply(base, c.applied, flushed)
	if err := errors.Join(err, base.Close()); err != nil {
		return err
	}
	// What was flushed before this cut holds for all later ones.
	c.applied = flushed
	if err := tool(ctx, "cp", "--sparse=auto", c.base, device); err != nil {
		return err
	}
	file, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	// By seed and cut, so that one cut can be repeated alone.
	source := rand.New(rand.NewPCG(c.seed, uint64(n)+2)) //nolint:gosec // a seed that can be repeated
	if source.IntN(2) == 0 {
		err = c.record.apply(file, flushed, n)
	} else {
		err = c.record.scatter(file, flushed, n, source)
	}
	return errors.Join(err, file.Close())
}

// report shows what was struck, so that a step that no cut fell into is seen.
func (c *campaign) report(cuts, violations int, took time.Duration) {
	fmt.Printf("%s: %d cuts in %s, %d violations\n", c.stage.name, cuts, took.Round(time.Second), violations)
	for _, outcome := range slices.Sorted(maps.Keys(c.outcomes)) {
		fmt.Printf("%6d  %s\n", c.outcomes[outcome], outcome)
	}
}
