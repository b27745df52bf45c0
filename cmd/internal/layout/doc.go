// Package layout holds the tests of the project's structure: which package may
// import which, and that every package says what it is for.
package layout
