package site_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/daemon/mail/mailtest"
	"vpssnapd/hypervisor/lab"
)

// TestMailOutlivesTheDaemon: what a customer is to be told while the mail server is
// down is recorded, and sent by the daemon that comes after the one that was killed.
func TestMailOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	server := mailtest.Start(t, "tls", "vpssnapd", "a secret")
	server.Stop()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(server.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHost(
		t,
		fmt.Sprintf(
			"[mail]\nhost = '127.0.0.1'\nport = %d\ntls = 'tls'\nca = '%s'\nusername = 'vpssnapd'\npassword_file = '%s'\nfrom = 'Example <a@example.org>'\n",
			server.Port, server.CA, password,
		),
	)
	ctx := t.Context()
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "shut off")
	_, err := h.Client.PutOption(
		ctx, "web1", api.OptionOrder{State: "active", ContactEmail: "jeanne@example.net", Locale: "fr"},
	)
	h.must(err)
	h.take("web1", api.TakeRequest{Description: "avant"})
	h.done(h.Client.Delete(ctx, "web1"))
	h.must(h.KillDaemon())
	server.Start()
	h.must(h.StartDaemon(ctx))
	subjects := map[string]int{}
	for _, m := range server.Wait(2) {
		subjects[m.Subject]++
		if m.To[0] != "jeanne@example.net" || m.User != "vpssnapd" || !m.TLS || strings.Contains(m.Text+m.HTML, h.Lab.Dir()) {
			t.Errorf("%+v", m)
		}
	}
	if subjects["Le snapshot de web1 a été supprimé"] != 1 || subjects["Un snapshot de web1 a été créé"] != 1 {
		t.Errorf("arrived: %v", subjects)
	}
	if log, err := os.ReadFile(h.LogFile()); err != nil || strings.Contains(string(log), server.Password) {
		t.Errorf("the password is in the log (%v)", err)
	}
}
