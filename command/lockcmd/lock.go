// Package lockcmd holds the command that runs a program while it holds a lock.
package lockcmd

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "lock", Args: "PREFIX CHILD...", Synopsis: "Run a program while holding a lock", Client: true, Server: true, Setup: setup,
		Help: "Acquires a lock at PREFIX, or with -n one of several, runs the program and releases the lock when it ends. The program is " +
			"ended when the lock is lost.",
	}}
}

// options are the flags of the command.
type options struct {
	holders      int
	timeout, try time.Duration
	name         string
	retries      int
	passStdin    bool
	shell        bool
	childExit    bool
	verbose      bool
}

const (
	childExitCode = 2               // with -child-exit-code, when the child failed
	killAfter     = 5 * time.Second // from the polite signal to the other
	retryTime     = time.Second     // between attempts to look at a lock while servers answer 500
)

func setup(f *flag.FlagSet) func(*verb.Call) error {
	o := new(options)
	f.IntVar(&o.holders, "n", 1, "`number` of holders the lock may have")
	f.DurationVar(&o.timeout, "timeout", 0, "`time` to try to acquire the lock; 0 for ever")
	f.DurationVar(&o.try, "try", 0, "old name of -timeout")
	f.StringVar(&o.name, "name", "", "`name` of the session")
	f.IntVar(&o.retries, "monitor-retry", 3, "`times` an error of the servers is put up with while the lock is held")
	f.BoolVar(&o.passStdin, "pass-stdin", false, "let the program read the standard input")
	f.BoolVar(&o.shell, "shell", true, "run the program with a shell")
	f.BoolVar(&o.childExit, "child-exit-code", false, "exit 2 if the program fails")
	f.BoolVar(&o.verbose, "verbose", false, "tell what happens")
	return o.run
}

// A holder acquires and gives back one lock.
type holder struct {
	acquire func(stop <-chan struct{}) (lost <-chan struct{}, err error)
	release func() error
	destroy func() error
	inUse   error // what destroy returns when others hold the lock
}

func (o *options) run(c *verb.Call) error {
	timeout := max(o.timeout, o.try)
	switch {
	case len(c.Args) < 2:
		return verb.Errorf("Key prefix and child command must be specified")
	case o.holders <= 0:
		return verb.Errorf("Lock holder limit must be positive")
	case o.timeout < 0 || o.try < 0:
		return verb.Errorf("Timeout must be positive")
	case o.retries < 0:
		return verb.Errorf("Number for 'monitor-retry' must be >= 0")
	}
	prefix, words := strings.TrimPrefix(c.Args[0], "/"), c.Args[1:]
	if o.name == "" {
		o.name = fmt.Sprintf("Sarn lock for '%s' at '%s'", strings.Join(words, " "), prefix)
	}
	client, err := c.API()
	if err != nil {
		return err
	}
	h, err := o.holder(c, client, prefix, timeout)
	if err != nil {
		return verb.Errorf("Lock setup failed: %w", err)
	}

	ctx, cancel := c.Interruptible()
	defer cancel()
	o.say(c, "Attempting lock acquisition")
	lost, err := h.acquire(ctx.Done())
	switch {
	case err != nil:
		return verb.Errorf("Lock acquisition failed: %w", err)
	case lost == nil:
		return verb.Errorf("Shutdown triggered or timeout during lock acquisition")
	}
	o.say(c, "Starting handler")
	failed := o.child(c, words, lost, ctx.Done())
	if failed != nil {
		c.Warnf("Error running handler: %v", failed)
	}
	o.say(c, "Child terminated, releasing lock")
	if err := h.release(); err != nil {
		return verb.Errorf("Lock release failed: %w", err)
	}
	switch err := h.destroy(); {
	case err == nil:
		o.say(c, "Cleanup succeeded")
	case errors.Is(err, h.inUse):
		o.say(c, "Cleanup aborted, lock in use")
	default:
		return verb.Errorf("Lock cleanup failed: %w", err)
	}
	if failed != nil && o.childExit {
		return verb.Exit(childExitCode, nil)
	}
	return nil
}

func (o *options) say(c *verb.Call, text string) {
	if o.verbose {
		c.Println(text)
	}
}

// holder makes the lock, or for several holders the semaphore.
func (o *options) holder(c *verb.Call, client *api.Client, prefix string, timeout time.Duration) (*holder, error) {
	if o.holders == 1 {
		key := prefix + "/.lock"
		o.say(c, "Setting up lock at path: "+key)
		l, err := client.LockOpts(&api.LockOptions{
			Key: key, SessionName: o.name, MonitorRetries: o.retries, MonitorRetryTime: retryTime,
			LockTryOnce: timeout > 0, LockWaitTime: timeout,
		})
		if err != nil {
			return nil, err
		}
		return &holder{l.Lock, l.Unlock, l.Destroy, api.ErrLockInUse}, nil
	}
	o.say(c, fmt.Sprintf("Setting up semaphore (limit %d) at prefix: %s", o.holders, prefix))
	s, err := client.SemaphoreOpts(&api.SemaphoreOptions{
		Prefix: prefix, Limit: o.holders, SessionName: o.name, MonitorRetries: o.retries, MonitorRetryTime: retryTime,
		SemaphoreTryOnce: timeout > 0, SemaphoreWaitTime: timeout,
	})
	if err != nil {
		return nil, err
	}
	return &holder{s.Acquire, s.Release, s.Destroy, api.ErrSemaphoreInUse}, nil
}

// child runs the program until it ends, the lock is lost or the command is told to stop. Other signals are passed on.
func (o *options) child(c *verb.Call, words []string, lost, stop <-chan struct{}) error {
	cmd := c.Child(words, o.shell, "CONSUL_LOCK_HELD=true")
	if o.passStdin {
		cmd.Stdin = c.In
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	for {
		select {
		case err := <-done:
			return err
		case s := <-signals:
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				c.Warnf("Error passing on a signal: %v", err)
			}
		case <-lost:
			c.Warnf("Lock lost, ending the child")
			return end(cmd, done)
		case <-stop:
			return end(cmd, done)
		}
	}
}

// end asks the program to end, and makes it if it does not.
func end(cmd *exec.Cmd, done <-chan error) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-time.After(killAfter):
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return <-done
}
