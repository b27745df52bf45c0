package failpoint

import (
	_ "embed"
	"strings"
)

//go:embed points.txt
var points string

// Points are the names of all points.
func Points() []string { return strings.Fields(points) }
