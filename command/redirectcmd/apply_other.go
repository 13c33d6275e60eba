//go:build !linux

package redirectcmd

import (
	"context"
	"errors"
)

func apply(context.Context, string, string) error {
	return errors.New("only known how to be done on Linux")
}
