package layout

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const top = "../../.."

// longestREADME is what somebody with ten minutes can read. More belongs to packaging/doc.
const longestREADME = 200

func TestREADMEIsShort(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(top, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines > longestREADME {
		t.Errorf(
			"README.md has %d lines, more than %d: move what is not for every reader to packaging/doc", lines,
			longestREADME,
		)
	}
}

var link = regexp.MustCompile(`\]\(([^()\s]+)\)`)

// The documents are installed side by side in one directory, so there a link may lead
// to a sibling only. The README, which is installed beside them, links into the source.
func TestLinksLeadSomewhere(t *testing.T) {
	documents, err := filepath.Glob(filepath.Join(top, "packaging/doc/*.md"))
	if err != nil || len(documents) == 0 {
		t.Fatalf("no documents in packaging/doc: %v", err)
	}
	linked := map[string]bool{}
	for _, target := range links(t, filepath.Join(top, "README.md")) {
		linked[filepath.Join(top, target)] = true
		if _, err := os.Stat(filepath.Join(top, target)); err != nil {
			t.Errorf("README.md links to %s: %v", target, err)
		}
	}
	for _, document := range documents {
		if !linked[document] {
			t.Errorf("README.md does not link to %s, so nobody finds it", document)
		}
		for _, target := range links(t, document) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(document), target)); err != nil ||
				filepath.Base(target) != target {
				t.Errorf("%s links to %s, which is not a document beside it", document, target)
			}
		}
	}
}

// links returns the files that a document links to, without what is elsewhere.
func links(t *testing.T, document string) []string {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, match := range link.FindAllSubmatch(text, -1) {
		target, _, _ := strings.Cut(string(match[1]), "#")
		if target != "" && !strings.Contains(target, "://") {
			targets = append(targets, target)
		}
	}
	return targets
}
