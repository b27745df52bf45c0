package layout

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// faults are the faults that must have a known outcome, by their number. A test
// of one says so in its comment or its name, as in "FAULTS row 7" or "FAULTS
// rows 18-20"; go test -v -run Faults ./cmd/internal/layout lists the tests of each.
var faults = []string{
	1:  "daemon killed before the intent is durable",
	2:  "daemon killed with the intent durable, no overlay yet",
	3:  "daemon killed with the overlay made, QEMU not switched",
	4:  "daemon killed with QEMU switched, record not final",
	5:  "daemon killed with the guest frozen",
	6:  "daemon killed while a merge runs",
	7:  "daemon killed with the merge ready",
	8:  "daemon killed with the guest suspended for the pivot",
	9:  "daemon killed with a disk pivoted, not recorded",
	10: "daemon killed before the overlay is unlinked",
	11: "daemon killed in a restore, before the disks are exchanged",
	12: "daemon killed in a restore, before the start",
	13: "two daemons on one state directory",
	14: "libvirtd killed at any step",
	15: "libvirtd restarted during a merge",
	16: "a job's progress is full, but it is not ready",
	17: "pivot refused",
	18: "QEMU killed in a merge or when it is ready",
	19: "QEMU killed after the pivot",
	20: "guest powers off or reboots in a merge",
	21: "one of several disks fails in a take",
	22: "one disk has pivoted, another fails",
	23: "power cut at any write (make powercut tries many)",
	24: "file system aborts",
	25: "no space for the overlay",
	26: "no space in the base during a merge",
	27: "no space for the database",
	28: "I/O error of the database",
	29: "agent never answers the freeze",
	30: "daemon stopped longer than the watchdog allows",
	31: "operator works on the VPS behind the daemon's back",
	32: "base or overlay missing or replaced",
	33: "a file under another name",
	39: "a doubt that only an operator can end",
	41: "a disk whose image is no regular file",
	45: "reads that scan the whole history",
	46: "a mount that hangs",
	47: "a daemon that dies while a pivot is under way",
	48: "small things that real hosts showed",
}

var faultRows = regexp.MustCompile(`FAULTS\s+(?://\s+)?rows?\s+(\d+)(?:-(\d+))?`)

func TestFaultsHaveTests(t *testing.T) {
	named := map[int][]string{}
	err := filepath.WalkDir("../../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "layout/faults_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, match := range faultRows.FindAllSubmatchIndex(text, -1) {
			first, last := number(text, match[2:4]), number(text, match[4:6])
			at := fmt.Sprintf("%s:%d", strings.TrimPrefix(path, "../../../"), 1+strings.Count(string(text[:match[0]]), "\n"))
			for row := first; row <= max(first, last); row++ {
				if row < 1 || row >= len(faults) {
					t.Errorf("%s names row %d, which there is not", at, row)
				}
				named[row] = append(named[row], at)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for row, what := range faults[1:] {
		row++
		if what == "" {
			continue // not one of ours yet
		}
		if len(named[row]) == 0 {
			t.Errorf("no test names FAULTS row %d: %s", row, what)
		}
		t.Logf("FAULTS row %d, %s: %s", row, what, strings.Join(named[row], " "))
	}
}

// number reads what a part of a match found, 0 for nothing.
func number(text []byte, at []int) int {
	if at[0] < 0 {
		return 0
	}
	n, err := strconv.Atoi(string(text[at[0]:at[1]]))
	if err != nil {
		return -1
	}
	return n
}
