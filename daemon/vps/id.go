package vps

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// idForm is a VPS's id as people and programs write it, by its five parts.
var idForm = regexp.MustCompile(`^(?i)([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})$`)

// ReadID returns the id of a VPS as it is kept, in lower case and with dashes, of one that
// is written in upper case or without dashes; "" when ref is no id.
func ReadID(ref string) string {
	p := idForm.FindStringSubmatch(ref)
	if p == nil {
		return ""
	}
	return strings.ToLower(strings.Join(p[1:], "-"))
}

// NewSnapshotID makes the id of a snapshot: 12 hex digits.
func NewSnapshotID() string { return randomHex(6) }

// NewOperationID makes an id that sorts behind last, the newest so far, whatever the clock
// was set to since; "" when there is none. Else it begins with the time.
func NewOperationID(now time.Time, last string) string {
	ms := now.UnixMilli()
	var before int64
	if _, err := fmt.Sscanf(last, "op-%12x", &before); err == nil && before >= ms {
		ms = before + 1
	}
	return fmt.Sprintf("op-%012x%s", ms, randomHex(4))
}

// NewOptionID makes the id of an option.
func NewOptionID() string { return "opt-" + randomHex(8) }

// NewTokenID makes the id of a token; its digits are a part of the secret.
func NewTokenID() string { return "tok-" + randomHex(6) }

// NewDownloadID makes the id of a link to download.
func NewDownloadID() string { return "dl-" + randomHex(6) }

// NewWebhookID makes the id of a webhook.
func NewWebhookID() string { return "wh-" + randomHex(6) }

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) //nolint:errcheck // crypto/rand.Read never fails
	return hex.EncodeToString(b)
}

// Unique keeps the first of equals, and nil as nil.
func Unique[T comparable](all []T) []T {
	if all == nil {
		return nil
	}
	some := make([]T, 0, len(all))
	for _, one := range all {
		if !slices.Contains(some, one) {
			some = append(some, one)
		}
	}
	return some
}
