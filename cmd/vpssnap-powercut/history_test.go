package main

import (
	"bytes"
	"slices"
	"testing"

	"vpssnapd/api"
)

// one VPS, one disk: a write, a take with a write under way, a write, a restore.
func history() *victim {
	return &victim{name: "web1", targets: []string{"vda"}, acts: []*act{
		{kind: "option", began: 5, ended: 8},
		{kind: "write", target: "vda", value: 1, began: 10, ended: 20},
		{kind: "take", op: "t", began: 20, accepted: 30, ended: 60},
		{kind: "write", target: "vda", value: 2, began: 35, ended: 40, during: true},
		{kind: "write", target: "vda", value: 3, began: 60, ended: 70},
		{kind: "restore", op: "r", began: 80, accepted: 90, ended: 100, steps: []stepSeen{{85, "stop"}, {95, "exchange"}}},
	}}
}

func TestExpectation(t *testing.T) {
	const ok, failed = api.OperationStatusSucceeded, api.OperationStatusFailed
	for _, c := range []struct {
		what          string
		cut           int64
		take, restore api.OperationStatus
		want          []byte // block 0; nil: a violation
		snapshot      bool
	}{
		{"before all", 10, "", "", []byte{0}, false},
		{"in a write", 20 - 1, "", "", []byte{0, 1}, false},
		{"after a write", 20, "", "", []byte{1}, false},
		{"a take nobody heard of", 29, "", "", []byte{1}, false},
		{"a take that was accepted and is lost", 30, "", "", nil, false},
		{"a take undone", 45, failed, "", []byte{2}, false},
		{"a take adopted", 45, ok, "", []byte{2}, true},
		{"a take that had succeeded and failed", 60, failed, "", nil, false},
		{"a restore undone", 95, ok, failed, []byte{3}, true},
		{"a restore finished", 95, ok, ok, []byte{1, 2}, true},
		{"a restore that had succeeded and is lost", 100, ok, "", nil, true},
	} {
		status := func(op string) api.OperationStatus {
			return map[string]api.OperationStatus{"t": c.take, "r": c.restore}[op]
		}
		e, err := history().expect(c.cut, status)
		if (err != nil) != (c.want == nil) {
			t.Errorf("%s: %v", c.what, err)
		}
		if err != nil {
			continue
		}
		if got := e.current["vda"][0]; !slices.Equal(got, c.want) || (e.snapshot != nil) != c.snapshot ||
			e.option != (c.cut >= 8) {
			t.Errorf(
				"%s: the disk holds %v, snapshot %v, option %v; want %v, %v", c.what, got, e.snapshot != nil, e.option,
				c.want, c.snapshot,
			)
		}
	}
}

func TestCompareFindsLostWrites(t *testing.T) {
	d := newDisks([]string{"vda"})
	d["vda"][1] = []byte{7}
	data := make([]byte, blocks*blockSize)
	copy(data[blockSize:], bytes.Repeat([]byte{7}, blockSize))
	if err := d.compare("vda", data); err != nil {
		t.Error(err)
	}
	for what, at := range map[string]int{"a lost write": blockSize + grain, "a block nobody wrote": 5 * blockSize} {
		wrong := slices.Clone(data)
		copy(wrong[at:], bytes.Repeat([]byte{wrong[at] ^ 7}, grain))
		if d.compare("vda", wrong) == nil {
			t.Errorf("%s is not found", what)
		}
		wrong = slices.Clone(data)
		wrong[at+1] ^= 7
		if d.compare("vda", wrong) == nil {
			t.Errorf("one byte of %s is not found", what)
		}
	}
}

func TestLabelNamesTheStep(t *testing.T) {
	for cut, want := range map[int64]string{
		15: "between operations", 25: "take of web1 at accepted", 85: "restore of web1 at stop", 100: "restore of web1 at exchange", 101: "between operations",
	} {
		if got := label([]*victim{history()}, cut); got != want {
			t.Errorf("at %d: %q, want %q", cut, got, want)
		}
	}
}
