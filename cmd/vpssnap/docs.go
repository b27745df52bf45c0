package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// docsCmd is for who builds packages: man pages and completions are made from the
// commands themselves, so that they cannot differ.
func docsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "docs DIRECTORY",
		Short:  "Write the man pages and the shell completions",
		Long:   "Write the man pages (man1) and the completions of bash, zsh and fish, for packages.",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return writeDocs(cmd.Root(), args[0])
		},
	}
}

// writeDocs makes everything from the commands. The date in the man pages is that of
// SOURCE_DATE_EPOCH where a build sets it, so that packages can be built again to the byte.
func writeDocs(root *cobra.Command, dir string) error {
	pages := filepath.Join(dir, "man1")
	if err := os.MkdirAll(pages, 0o755); err != nil { //nolint:gosec // to be read by all
		return err
	}
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "1", Source: "vpssnapd " + version, Manual: "vpssnapd"}
	if err := doc.GenManTree(root, header, pages); err != nil {
		return fmt.Errorf("cannot write the man pages: %w", err)
	}
	for name, write := range map[string]func(io.Writer) error{
		"vpssnap.bash": func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"_vpssnap":     root.GenZshCompletion,
		"vpssnap.fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
	} {
		if err := writeFile(filepath.Join(dir, name), write); err != nil {
			return fmt.Errorf("cannot write the completions: %w", err)
		}
	}
	return nil
}

// writeFile reports the error of Close too: a full disk shows only there.
func writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if closing := f.Close(); err == nil {
			err = closing
		}
	}()
	return write(f)
}
