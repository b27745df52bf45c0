package lab

import "context"

type Boot struct{ Kernel, Initramfs, Arguments string }

func Build(ctx context.Context, dir string) (Boot, error) { return Boot{}, nil }
