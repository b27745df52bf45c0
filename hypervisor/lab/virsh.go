package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Virsh runs virsh against the lab and returns what it printed.
func (l *Lab) Virsh(ctx context.Context, args ...string) (string, error) {
	return run(ctx, "virsh", append([]string{"--quiet", "--connect", l.URI()}, args...)...)
}

// run runs a program to its end and returns its standard output.
func run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	// A grandchild that holds the pipes must not hang a cancelled caller. Of a hundred
	// programs at once, on two processors, one that had ended was read a second later.
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return stdout.String(), fmt.Errorf("cannot run %s %s: %w: %s", program, strings.Join(args, " "), err,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// QMP sends a command to the guest's QEMU past libvirt, and decodes what it
// returns into result, which may be nil.
func (l *Lab) QMP(ctx context.Context, name, command string, arguments, result any) error {
	message := map[string]any{"execute": command}
	if arguments != nil {
		message["arguments"] = arguments
	}
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	out, err := l.Virsh(ctx, "qemu-monitor-command", name, string(text))
	if err != nil {
		return err
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Description string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return fmt.Errorf("cannot read QEMU's answer to %s: %w", command, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("QEMU refuses %s: %s", command, answer.Error.Description)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Return, result)
}

// HMP sends a command to QEMU's human monitor and returns what it prints.
func (l *Lab) HMP(ctx context.Context, name, command string) (string, error) {
	return l.Virsh(ctx, "qemu-monitor-command", name, "--hmp", command)
}
