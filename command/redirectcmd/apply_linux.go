package redirectcmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// apply hands a script to nft, in the network namespace at the path unless that is empty. All of it happens, or nothing.
func apply(ctx context.Context, netns, script string) error {
	nft, err := find("nft")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, nft, "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	run := func() error {
		if err := cmd.Run(); err != nil {
			if text := strings.TrimSpace(out.String()); text != "" {
				return fmt.Errorf("nft: %s", text)
			}
			return fmt.Errorf("nft: %w", err)
		}
		return nil
	}
	if netns == "" {
		return run()
	}
	return within(netns, run)
}

// find returns the path of a program of the system, which users other than root may not have on theirs.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the program %s was not found; install nftables", name)
}

// within calls f on a thread of another network namespace, which the children that f starts inherit.
func within(netns string, f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its namespace with it.
		runtime.LockOSThread()
		ns, err := os.Open(netns)
		if err == nil {
			if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				err = fmt.Errorf("enter %s: %w", netns, err)
			}
			err = errors.Join(err, ns.Close())
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
