package main

import "github.com/spf13/cobra"

// largestPage is what the API gives at most in one answer.
const largestPage = 200

// limitFlag adds --limit to a list that comes in pages.
func limitFlag(cmd *cobra.Command, limit *int) {
	cmd.Flags().IntVar(limit, "limit", 50, "print at most so many")
}

// readPages reads on until it has limit entries, or all. A page is never asked for
// larger than the API gives.
func readPages[T any](limit int, read func(size int, cursor *string) ([]T, string, error)) ([]T, error) {
	if limit < 1 {
		return nil, usagef("--limit must be at least 1")
	}
	list := []T{}
	var cursor *string
	for {
		page, next, err := read(min(limit-len(list), largestPage), cursor)
		if err != nil {
			return nil, err
		}
		list = append(list, page...)
		if next == "" || len(list) >= limit {
			return list, nil
		}
		cursor = &next
	}
}
