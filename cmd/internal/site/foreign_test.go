package site_test

import (
	"os/exec"
	"strings"
	"testing"

	"vpssnapd/hypervisor/lab"
)

// TestForeignClient has a client in another language do the main job. It is
// generated, at this moment, from the document that the daemon serves: by
// OpenAPI::Client, which is written in Perl and knows nothing of us.
func TestForeignClient(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	url := h.listen()
	for _, name := range []string{"web1", "web2"} {
		_, err := h.Lab.DefineDomain(
			ctx, lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", Format: "qcow2", SizeBytes: 16 << 20}}},
		)
		h.must(err)
		h.eventually("the daemon knows "+name, func() bool {
			_, err := h.Client.VPS(ctx, name)
			return err == nil
		})
	}
	h.virsh("start", "web1")
	token := func(arguments ...string) string {
		secret, stderr, code := h.CLI(ctx, append([]string{"token", "create"}, arguments...)...)
		if code != 0 {
			t.Fatalf("vpssnap token create %v: %d %s", arguments, code, stderr)
		}
		return strings.TrimSpace(secret)
	}
	shop := token("shop", "--scope", "read,option", "--way", "order")
	panel := token("panel", "--scope", "read,snapshot", "--vps", "web1")
	out, err := exec.CommandContext(ctx, "perl", "testdata/client.pl", url, shop, panel).CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "all done\n") {
		t.Fatalf("the client: %v\n%s", err, out)
	}
	t.Logf("the client:\n%s", out)
}
