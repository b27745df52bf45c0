package main

import "testing"

// TestMutantsApply: each edit's text is in its file exactly once. Who changes the product
// takes its mutants along.
func TestMutantsApply(t *testing.T) {
	t.Chdir("../..")
	for _, m := range mutants {
		if _, err := m.overlay(t.TempDir()); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
