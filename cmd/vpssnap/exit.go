package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// The exit codes, the same for every command. exitHelp tells the user.
const (
	// Scripts rely on them: none changes its meaning.
	exitDone           = 0
	exitOther          = 1
	exitUsage          = 2
	exitNotFound       = 3
	exitRefused        = 4
	exitNotPermitted   = 5
	exitUnavailable    = 6
	exitFailed         = 7
	exitCancelled      = 8
	exitNeedsAttention = 9
	exitFindings       = 10
	exitInterrupted    = 130
)

// Its lines are indented so far that they are a table in the man pages, too.
const exitHelp = `Exit codes:

      0  done
      1  another error
      2  the command line or the request is not valid, or a confirmation is missing
      3  no such VPS, snapshot, option or operation
      4  refused in the present state: no active option, a snapshot exists, another
         operation runs, the VPS changed, a disk is not supported, no space
      5  not permitted
      6  the daemon or the hypervisor is not available; try again later
      7  the operation failed; the disks are whole
      8  the operation was cancelled, or you did not confirm
      9  the operation needs an operator
     10  doctor found something that is not as recorded
    130  interrupted; an operation that was begun goes on`

// exits says which code of the API leads to which exit code.
var exits = map[api.Code]int{
	api.CodeInvalid:               exitUsage,
	api.CodeConfirmationRequired:  exitUsage,
	api.CodeNotFound:              exitNotFound,
	api.CodeOptionRequired:        exitRefused,
	api.CodeSnapshotExists:        exitRefused,
	api.CodeOperationInProgress:   exitRefused,
	api.CodeVPSChanged:            exitRefused,
	api.CodePreconditionFailed:    exitRefused,
	api.CodeUnsupportedDisk:       exitRefused,
	api.CodeInsufficientSpace:     exitRefused,
	api.CodeUnauthenticated:       exitNotPermitted,
	api.CodeForbidden:             exitNotPermitted,
	api.CodeHypervisorUnavailable: exitUnavailable,
	api.CodeRateLimited:           exitUnavailable,
	api.CodeGuestUnresponsive:     exitFailed,
	api.CodeInternal:              exitOther,
}

// documentExits puts the exit codes into the help of cmd and all below it.
func documentExits(cmd *cobra.Command) {
	if cmd.Long == "" {
		cmd.Long = cmd.Short + "."
	}
	cmd.Long += "\n\n" + exitHelp
	for _, sub := range cmd.Commands() {
		documentExits(sub)
	}
}

// errNotConfirmed: the user was asked, and did not say yes.
var errNotConfirmed = errors.New("not confirmed; nothing was done")

// errTooLate: the operation to be cancelled had succeeded before.
var errTooLate = errors.New("too late: the operation has succeeded")

// outcomeError is that of an operation that ended, and not well.
type outcomeError struct{ op api.Operation }

// It says what the state of the disks is, which is the first question.
func (e *outcomeError) Error() string {
	what := fmt.Sprintf("%s of %s (%s)", kindName(e.op.Kind), e.op.VPSName, e.op.ID)
	why := ""
	if e.op.Error != nil {
		why = ": " + e.op.Error.Detail
	}
	switch e.op.Status {
	case api.OperationStatusCancelled:
		return what + " was cancelled; everything was undone"
	case api.OperationStatusNeedsAttention:
		return what + " needs an operator" + why
	}
	return what + " failed" + why
}

// findingsError: doctor has printed findings.
type findingsError struct{ n int }

func (e *findingsError) Error() string {
	if e.n == 1 {
		return "one thing is not as recorded"
	}
	return fmt.Sprintf("%d things are not as recorded", e.n)
}

// interruptedError: the user stopped waiting for op.
type interruptedError struct{ op api.Operation }

// Ctrl-C ends the waiting and not the operation.
func (e *interruptedError) Error() string {
	return fmt.Sprintf("interrupted; %s of %s goes on", kindName(e.op.Kind), e.op.VPSName)
}

// The order counts: what is most telling comes first.
func (a *app) exitCode(err error) int {
	var (
		usage       *usageError
		outcome     *outcomeError
		interrupted *interruptedError
		findings    *findingsError
		refused     *client.Error
		unreachable *client.UnreachableError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &findings):
		return exitFindings
	case !a.started && a.written() != nil: // the help, to a full device
		return exitOther
	case errors.As(err, &usage), !a.started:
		return exitUsage
	case errors.As(err, &outcome):
		return outcomeCode(outcome.op.Status)
	case errors.As(err, &interrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, errNotConfirmed):
		return exitCancelled
	case errors.As(err, &refused):
		if code, ok := exits[refused.Code]; ok {
			return code
		}
	case errors.As(err, &unreachable):
		// The socket is there, and not for this user.
		if errors.Is(err, fs.ErrPermission) {
			return exitNotPermitted
		}
		return exitUnavailable
	}
	return exitOther
}

// outcomeCode is the exit code of an operation that did not succeed.
func outcomeCode(s api.OperationStatus) int {
	switch s {
	case api.OperationStatusCancelled:
		return exitCancelled
	case api.OperationStatusNeedsAttention:
		return exitNeedsAttention
	}
	return exitFailed
}

// complain tells the user what went wrong, and what to do about it.
func (a *app) complain(err error) {
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = "interrupted"
	}
	fmt.Fprintf(a.stderr, "vpssnap: %s\n", clean(text))
	for _, line := range a.remedy(err) {
		fmt.Fprintf(a.stderr, "  %s\n", clean(line))
	}
}

// remedy is what to do next, in lines that can be typed.
func (a *app) remedy(err error) []string {
	var (
		usage       *usageError
		outcome     *outcomeError
		interrupted *interruptedError
		refused     *client.Error
		unreachable *client.UnreachableError
	)
	switch {
	case errors.As(err, &usage):
		return usage.remedy
	case errors.As(err, &outcome):
		return outcomeRemedy(outcome.op)
	case errors.As(err, &interrupted):
		id := interrupted.op.ID
		return []string{
			"see how it goes:  vpssnap operations show " + id,
			"stop it:          vpssnap operations cancel " + id,
		}
	case errors.As(err, &refused):
		return refusedRemedy(refused)
	case errors.As(err, &unreachable) && a.server != "":
		return []string{"is the URL right, and does vpssnapd listen there?"}
	case errors.As(err, &unreachable) && errors.Is(err, fs.ErrPermission):
		return []string{"become root or a member of the operators' group (vpssnap)"}
	case errors.As(err, &unreachable):
		return []string{
			"start it:            systemctl start vpssnapd",
			"see why it stopped:  journalctl -u vpssnapd",
			"Meanwhile the VPSes run on, and what was begun goes on when it is back.",
		}
	}
	return nil
}

// outcomeRemedy is what the daemon says, and how to go on afterwards.
func outcomeRemedy(op api.Operation) []string {
	var lines []string
	if op.Error != nil && op.Error.Remedy != "" {
		lines = append(lines, op.Error.Remedy)
	}
	if op.Status == api.OperationStatusNeedsAttention {
		lines = append(lines, "when the cause is cured:  vpssnap operations resume "+op.ID)
	}
	return lines
}

// withCommands puts our commands in the place of the API's calls. The API cannot know by
// which program it is asked.
func withCommands(err error, ref string) error {
	var refused *client.Error
	if !errors.As(err, &refused) {
		return err
	}
	switch refused.Code {
	case api.CodeOptionRequired:
		refused.Remedy = "activate the option:  vpssnap option activate " + ref
	case api.CodeSnapshotExists:
		refused.Remedy = "delete it:   vpssnap delete " + ref + "\nreplace it:  vpssnap take " + ref + " --replace"
	case api.CodeOperationInProgress:
		refused.Remedy = "see how it goes:  vpssnap operations --vps " + ref
	}
	return err
}

// refusedRemedy names the request when only the log can tell more.
func refusedRemedy(e *client.Error) []string {
	var lines []string
	if e.Remedy != "" {
		lines = strings.Split(e.Remedy, "\n")
	}
	if e.Code == api.CodeInternal && e.RequestID != "" {
		lines = append(lines, "request id: "+e.RequestID)
	}
	return lines
}
