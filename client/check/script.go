package check

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/program"
)

// A scriptProbe runs a program and judges its exit code.
type scriptProbe struct {
	args    []string
	timeout time.Duration // 0 means the default
	limit   int
}

// Probe runs the program once. When its time is up, its whole process group is killed.
func (p scriptProbe) Probe(ctx context.Context) Result {
	timeout := p.timeout
	if timeout <= 0 {
		timeout = scriptTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimedOut)
	defer cancel()
	out := newTail(p.limit)
	cmd := program.Command(ctx, p.args...)
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	if context.Cause(ctx) == errTimedOut && (cmd.ProcessState == nil || !cmd.ProcessState.Success()) {
		return Result{Status: catalog.Critical, Output: fmt.Sprintf("Timed out (%s) running check\n\n%s", timeout, out.report()), Final: true}
	}
	return scriptResult(err, out)
}

var errTimedOut = errors.New("script timed out")

func scriptResult(err error, out *tail) Result {
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return Result{Status: catalog.Passing, Output: out.report()}
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if exit.ExitCode() == 1 {
			return Result{Status: catalog.Warning, Output: out.report()}
		}
		return Result{Status: catalog.Critical, Output: out.report()}
	}
	return critical("%v", err)
}
