package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"vpssnapd/api"
)

// steering is what a customer, or who names a VPS, may have written: C1 controls, one as a
// bare byte, turns of the direction, invisible and line-ending characters.
const steering = "a\u009b31m\u0085\u202e\u2066\u2069\u200f\u2028\u2029\ufeff\U000e0001\x7fz"

// answering serves the same VPS, with such texts in it, to whoever asks for anything.
func answering(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	snapshot := api.Snapshot{ID: "abc", State: "available", Description: steering, Consistency: "offline"}
	v := api.VPS{ID: "11111111-1111-4111-8111-111111111111", Name: steering, State: "running", Snapshot: &snapshot}
	answers := map[string]any{
		"/v1/vps":        api.VPSList{VPS: []api.VPS{v}},
		"/v1/operations": api.OperationList{Operations: []api.Operation{{ID: "op-1", VPSName: steering, Result: steering}}},
		"/v1/messages":   api.MessageList{Messages: []api.Message{{Text: steering, VPSName: steering}}},
		"/v1/offers":     api.OfferList{Offers: []api.Offer{{Name: steering, Description: steering}}},
		"/v1/tokens":     api.TokenList{Tokens: []api.Token{{Name: steering}}},
		"/v1/webhooks":   api.WebhookList{Webhooks: []api.Webhook{{URL: steering, LastError: steering}}},
		"/v1/host":       api.Host{Hostname: steering, Storage: []api.Storage{{Path: steering}}},
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer, ok := answers[r.URL.Path]
		if !ok {
			answer = v
		}
		check(t, json.NewEncoder(w).Encode(answer))
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { check(t, s.Close()) })
	return socket
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// looks are the commands that print what others wrote.
var looks = [][]string{
	{"list"}, {"show", "x"}, {"operations", "list"}, {"messages"}, {"offers"}, {"token", "list"}, {"webhook", "list"}, {"host"},
	{"__complete", "show", ""},
}

// Nothing that steers a terminal is printed as it is, in whatever form; in JSON and YAML it
// can all the same be read.
func TestNothingSteersTheTerminal(t *testing.T) {
	socket := answering(t)
	for _, look := range looks {
		for _, form := range []string{"table", "json", "yaml"} {
			var out, problems bytes.Buffer
			args := append([]string{"--socket", socket, "-o", form}, look...)
			if look[0] == "__complete" {
				if form != "table" {
					continue
				}
				t.Setenv("VPSSNAP_SOCKET", socket)
				args = look
			}
			if code := run(args, os.Stdin, &out, &problems); code != 0 {
				t.Fatalf("%v: exit code %d: %s", args, code, problems.String())
			}
			if raw := strings.IndexFunc(out.String()+problems.String(), steers); raw >= 0 {
				t.Errorf("%v prints %q", args, out.String()[raw:min(raw+8, out.Len())])
			}
			var back any
			switch form {
			case "json":
				check(t, json.Unmarshal(out.Bytes(), &back))
			case "yaml":
				check(t, yaml.Unmarshal(out.Bytes(), &back))
			default:
				continue
			}
			if !strings.Contains(fmt.Sprint(back), steering) {
				t.Errorf("%v: the text cannot be read any more: %s", args, out.String())
			}
		}
	}
}

// A full device, or a reader that is gone, is no success, whatever was to be printed.
func TestAFullDeviceIsNoSuccess(t *testing.T) {
	socket := answering(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	all := [][]string{
		{"--help"}, {"list", "--help"}, {"version"}, {"--version"}, {"completion", "bash"}, {"watch"},
	}
	for _, look := range looks {
		for _, form := range []string{"table", "json", "yaml"} {
			all = append(all, append([]string{"--socket", socket, "-o", form}, look...))
		}
	}
	t.Setenv("VPSSNAP_SOCKET", socket)
	for _, args := range all {
		var problems bytes.Buffer
		if code := run(args, os.Stdin, full, &problems); code != exitOther {
			t.Errorf("%v on a full device ends with %d", args, code)
		}
		if problems.Len() == 0 {
			t.Errorf("%v on a full device says nothing", args)
		}
		if args[0] != "watch" && run(args, os.Stdin, io.Discard, &problems) != 0 {
			t.Errorf("%v fails where it can print: %s", args, problems.String())
		}
	}
}
