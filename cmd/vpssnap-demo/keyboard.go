package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// keyboard is a terminal to be asked on, with somebody who answers one question.
type keyboard struct {
	// terminal is the program's side.
	terminal *os.File
	ours     *os.File
	screen   io.Writer
	// question is what must be read before the answer is typed.
	question, answer string
	read             []byte
	typed            bool
}

func newKeyboard(screen io.Writer, question, answer string) (*keyboard, error) {
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open a terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open a terminal: %w", err), ours.Close())
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open a terminal: %w", err), ours.Close())
	}
	return &keyboard{terminal: terminal, ours: ours, screen: screen, question: question, answer: answer}, nil
}

// Write reads what the program printed, and types the answer when it asks.
func (k *keyboard) Write(printed []byte) (int, error) {
	k.read = append(k.read, printed...)
	if k.typed || !bytes.HasSuffix(k.read, []byte(k.question)) {
		return len(printed), nil
	}
	k.typed = true
	if _, err := fmt.Fprintln(k.ours, k.answer); err != nil {
		return 0, err
	}
	_, err := fmt.Fprintln(k.screen, k.answer)
	return len(printed), err
}

func (k *keyboard) Close() error { return errors.Join(k.terminal.Close(), k.ours.Close()) }
