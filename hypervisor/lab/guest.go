package lab

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// agentTimeout is what one call to the agent may take, in seconds.
	agentTimeout = "20"
	// agentChunk is how much of a file goes into one call to the agent.
	agentChunk = 64 << 10
	pollEvery  = 100 * time.Millisecond
)

// Agent sends a command to the guest's agent and decodes what it returns into
// result, which may be nil.
func (l *Lab) Agent(ctx context.Context, name, command string, arguments, result any) error {
	message := map[string]any{"execute": command}
	if arguments != nil {
		message["arguments"] = arguments
	}
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	out, err := l.Virsh(ctx, "qemu-agent-command", "--timeout", agentTimeout, name, string(text))
	if err != nil || result == nil {
		return err
	}
	answer := struct {
		Return any `json:"return"`
	}{result}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return fmt.Errorf("cannot read the agent's answer to %s: %w", command, err)
	}
	return nil
}

// WaitAgent returns when the guest's agent answers: the guest has booted.
func (l *Lab) WaitAgent(ctx context.Context, name string) error {
	err := poll(ctx, func() (bool, error) {
		return l.Agent(ctx, name, "guest-ping", nil, nil) == nil, nil
	})
	if err != nil {
		return fmt.Errorf("the agent of %s does not answer: %w; its console ends with %q", name, err, l.consoleEnd(name))
	}
	return nil
}

// poll asks done until it says so, fails, or ctx is over.
func poll(ctx context.Context, done func() (bool, error)) error {
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// WaitState returns when the domain is in that state, in virsh's words.
func (l *Lab) WaitState(ctx context.Context, name, state string) error {
	var last string
	err := poll(ctx, func() (_ bool, err error) {
		last, err = l.State(ctx, name)
		return last == state, err
	})
	if err != nil {
		return fmt.Errorf("%s is %s, not %s: %w", name, last, state, err)
	}
	return nil
}

// GuestExec runs a program in the guest and returns its standard output and exit
// code. An error means that it could not be run.
func (l *Lab) GuestExec(ctx context.Context, name string, argv ...string) (string, int, error) {
	pid, err := l.guestStart(ctx, name, true, argv)
	if err != nil {
		return "", 0, err
	}
	var status struct {
		Exited bool   `json:"exited"`
		Code   int    `json:"exitcode"`
		Out    []byte `json:"out-data"`
	}
	err = poll(ctx, func() (bool, error) {
		err := l.Agent(ctx, name, "guest-exec-status", map[string]any{"pid": pid}, &status)
		return status.Exited, err
	})
	return string(status.Out), status.Code, err
}

// GuestStart starts a program in the guest and does not wait for it.
func (l *Lab) GuestStart(ctx context.Context, name string, argv ...string) error {
	_, err := l.guestStart(ctx, name, false, argv)
	return err
}

func (l *Lab) guestStart(ctx context.Context, name string, capture bool, argv []string) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("no program to run in the guest")
	}
	var started struct {
		PID int `json:"pid"`
	}
	err := l.Agent(ctx, name, "guest-exec", map[string]any{
		"path": argv[0], "arg": argv[1:], "capture-output": capture,
	}, &started)
	return started.PID, err
}

// GuestSync writes what the guest's page cache holds to its disks.
func (l *Lab) GuestSync(ctx context.Context, name string) error {
	_, code, err := l.GuestExec(ctx, name, "sync")
	if err == nil && code != 0 {
		err = fmt.Errorf("sync in %s ended with %d", name, code)
	}
	return err
}

// GuestShutdown asks the agent to power the guest off and returns when it is off.
func (l *Lab) GuestShutdown(ctx context.Context, name string) error {
	// The agent of a guest that goes down owes no answer.
	if _, err := l.Virsh(ctx, "shutdown", "--mode", "agent", name); err != nil {
		return err
	}
	return l.WaitState(ctx, name, "shut off")
}

// GuestWriteFile makes or replaces a file in the guest. It is not synced.
func (l *Lab) GuestWriteFile(ctx context.Context, name, path string, data []byte) error {
	return l.withGuestFile(ctx, name, path, "w", func(handle int) error {
		for len(data) > 0 {
			chunk := data[:min(len(data), agentChunk)]
			var written struct {
				Count int `json:"count"`
			}
			err := l.Agent(ctx, name, "guest-file-write", map[string]any{
				"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(chunk),
			}, &written)
			if err != nil {
				return err
			}
			if written.Count <= 0 || written.Count > len(chunk) {
				return fmt.Errorf("the agent wrote %d of %d bytes", written.Count, len(chunk))
			}
			data = data[written.Count:]
		}
		return nil
	})
}

// GuestReadFile reads a file in the guest.
func (l *Lab) GuestReadFile(ctx context.Context, name, path string) ([]byte, error) {
	var data []byte
	err := l.withGuestFile(ctx, name, path, "r", func(handle int) error {
		for {
			var got struct {
				Data []byte `json:"buf-b64"`
				EOF  bool   `json:"eof"`
			}
			err := l.Agent(ctx, name, "guest-file-read", map[string]any{"handle": handle, "count": agentChunk}, &got)
			if err != nil {
				return err
			}
			data = append(data, got.Data...)
			if got.EOF {
				return nil
			}
		}
	})
	return data, err
}

func (l *Lab) withGuestFile(ctx context.Context, name, path, mode string, use func(handle int) error) error {
	var handle int
	err := l.Agent(ctx, name, "guest-file-open", map[string]any{"path": path, "mode": mode}, &handle)
	if err != nil {
		return err
	}
	err = use(handle)
	return errors.Join(err, l.Agent(ctx, name, "guest-file-close", map[string]any{"handle": handle}, nil))
}

// RecordsFile is where the recorder writes, on the guest's first disk.
const RecordsFile = "/mnt/vda/records"

// StartRecorder makes the guest append 1, 2, 3, ... to RecordsFile, each with
// fsync before it is acknowledged. After a reboot it goes on with the next number.
func (l *Lab) StartRecorder(ctx context.Context, name string) error {
	return l.GuestStart(ctx, name, "record", RecordsFile)
}

// Acknowledged is the last number that the recorder said is on the disk; 0 for
// none. The console is kept over reboots: after a restore, which takes the
// numbers back, empty ConsoleFile before the guest starts.
func (l *Lab) Acknowledged(name string) (int, error) {
	text, err := os.ReadFile(l.ConsoleFile(name))
	if err != nil {
		return 0, err
	}
	last := 0
	// Without its end a line may lack digits.
	for line := range strings.Lines(string(text)) {
		number, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "ACK ")
		if n, err := strconv.Atoi(number); ok && err == nil && strings.HasSuffix(line, "\n") {
			last = n
		}
	}
	return last, nil
}

// WaitAcknowledged returns when the recorder has acknowledged at least n.
func (l *Lab) WaitAcknowledged(ctx context.Context, name string, n int) error {
	return poll(ctx, func() (bool, error) {
		last, err := l.Acknowledged(name)
		return last >= n, err
	})
}

// Records are the numbers in RecordsFile, read by the guest's agent.
func (l *Lab) Records(ctx context.Context, name string) ([]int, error) {
	text, err := l.GuestReadFile(ctx, name, RecordsFile)
	if err != nil {
		return nil, err
	}
	var records []int
	for line := range strings.Lines(string(text)) {
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return records, fmt.Errorf("record %d of %s is damaged: %q", len(records)+1, name, line)
		}
		records = append(records, n)
	}
	return records, nil
}

// consoleEnd is the last that the guest printed.
func (l *Lab) consoleEnd(name string) string {
	text, err := os.ReadFile(l.ConsoleFile(name))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-500):])
}
