package vps_test

import (
	"os/exec"
	"strings"
	"testing"

	"vpssnapd/daemon/vps"
)

// Every command that is shown can be pasted: a shell makes the same words of it.
func TestCommandsArePasteable(t *testing.T) {
	hostile := vps.Command{
		"printf",
		`%s\0`,
		"plain",
		"/srv/a b.qcow2",
		"it's",
		`"$(reboot)"`,
		"`id`",
		"$HOME",
		"*",
		"-rf",
		"",
		"é ü",
		"line\nbreak",
		"tab\tand\\n",
		"bell\x07",
		"bad\xff",
		"turned\u202eround",
		"a;b&c|d>e",
		"~",
		"#",
		"!x",
		"{a,b}",
		"x=1",
	}
	line := hostile.String()
	if strings.ContainsAny(line, "\n\t\x07\u202e") {
		t.Errorf("the line would not be shown as it is: %q", line)
	}
	out, err := exec.CommandContext(t.Context(), "bash", "-c", line).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(hostile[2:], "\x00") + "\x00"; string(out) != want {
		t.Errorf("the shell reads %q, want %q\n%s", out, want, line)
	}
	if got := (vps.Command{"virsh", "domblklist", "3b0c", "--inactive"}).String(); got != "virsh domblklist 3b0c --inactive" {
		t.Errorf("an ordinary command looks like %s", got)
	}
}
