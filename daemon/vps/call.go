package vps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
)

// Call is what the client of a changing call asks for beside the change itself:
// to be answered the same when it sends the call again, and to change only what
// it has seen.
type Call struct {
	// Client and Key name the call; Key "": it is not to be remembered.
	Client string
	Key    string
	// Owner is whose answers are counted together: the client, or who made its token.
	Owner string
	// Sum tells the call from another one with the same key.
	Sum [sha256.Size]byte
	// Record turns what came of the call into what is kept for its repetition.
	Record func(result any) ([]byte, error)
	// Match lists the versions that may be changed, "*" for any; nil: no condition.
	Match []string
}

type callKey struct{}

// WithCall returns a context of a call.
func WithCall(ctx context.Context, c Call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// CallOf returns the call that ctx belongs to; its zero value when there is none.
func CallOf(ctx context.Context) Call {
	c, _ := ctx.Value(callKey{}).(Call)
	return c
}

// CheckMatch compares the version of what is to be changed, "" when it does not
// exist, with those that the client has seen. Codes: precondition_failed.
func (c Call) CheckMatch(version string) error {
	if c.Match == nil || version != "" && (slices.Contains(c.Match, "*") || slices.Contains(c.Match, version)) {
		return nil
	}
	return Errorf(CodePreconditionFailed, "it was changed since you read it").
		WithRemedy("read it again, and decide anew")
}

// Version changes with everything that is recorded of the option.
func (o Option) Version() string { return versionOf(o) }

// Version changes with the description, and with the snapshot itself. Not with
// its measures: those change as long as the VPS writes.
func (s Snapshot) Version() string { return versionOf([]string{s.ID, s.Description}) }

func versionOf(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		text = []byte(err.Error()) // a time after the year 9999: a version, only not a fine one
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
