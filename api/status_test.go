package api_test

import (
	"strings"
	"testing"

	"vpssnapd/api"
)

func TestEveryCodeHasItsStatus(t *testing.T) {
	want := map[api.Code]int{
		"unauthenticated": 401, "forbidden": 403, "not_found": 404, "option_required": 402,
		"snapshot_exists": 409, "operation_in_progress": 409, "vps_changed": 409, "precondition_failed": 412,
		"confirmation_required": 422, "invalid": 400, "unsupported_disk": 422, "insufficient_space": 507,
		"hypervisor_unavailable": 503, "guest_unresponsive": 504, "rate_limited": 429, "internal": 500,
	}
	for code, status := range want {
		if !code.Valid() || code.HTTPStatus() != status {
			t.Errorf("%s: valid %v, status %d, want %d", code, code.Valid(), code.HTTPStatus(), status)
		}
	}
	_, enum, _ := strings.Cut(string(api.Spec), "\n    Code:\n")
	enum, _, _ = strings.Cut(enum, "\n    Problem:\n")
	if n := strings.Count(enum, "        - "); n != len(want) {
		t.Errorf("openapi.yaml has %d codes, the test %d", n, len(want))
	}
	if got := api.Code("brand_new").HTTPStatus(); got != 500 {
		t.Errorf("an unknown code: %d", got)
	}
}

func TestCodeForStatus(t *testing.T) {
	for status, want := range map[int]api.Code{
		401: api.CodeUnauthenticated, 404: api.CodeNotFound, 503: api.CodeHypervisorUnavailable,
		409: api.CodeInternal, 502: api.CodeInternal, 301: api.CodeInternal,
	} {
		if got := api.CodeForStatus(status); got != want {
			t.Errorf("%d: %s, want %s", status, got, want)
		}
	}
}
