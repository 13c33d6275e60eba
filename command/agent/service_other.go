//go:build !linux && !windows

package agent

import "context"

// managed runs an agent for nobody: there is no service manager to tell.
func managed(run func(context.Context, manager) int) int { return run(context.Background(), manager{}) }
