package libvirt_test

import (
	"os"
	"testing"

	"vpssnapd/hypervisor/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}
