package connectcmd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/connect/ca"
)

// rotationPath is the endpoint about rotations.
const rotationPath = "/v1/connect/ca/rotation"

func rotateRoot(f *flag.FlagSet) func(*verb.Call) error {
	keyType := f.String("key-type", "", "`type` of the new root's key: ec or rsa; default that of the configuration")
	bits := f.Int("key-bits", 0, "`size` of the new root's key; default that of the configuration, or else 256 for ec and 2048 for rsa")
	force := f.Bool("force", false, "let the new root sign without waiting until it is trusted; without -key-type and -key-bits, "+
		"the one that is being made known if there is one")
	watch := f.Bool("watch", false, "show how the rotation goes on until the new root signs alone; without other flags, of the "+
		"rotation under way")
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		if *keyType != "" && *keyType != ca.KeyEC && *keyType != ca.KeyRSA {
			return verb.Errorf("-key-type is ec or rsa")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if *keyType != "" || *bits != 0 || *force || !*watch {
			body := map[string]any{"PrivateKeyType": *keyType, "PrivateKeyBits": *bits, "Force": *force}
			if _, err := client.Raw().Write(rotationPath, body, nil, c.Write()); err != nil {
				return verb.Errorf("Error rotating the root: %w", err)
			}
		}
		ctx, stop := c.Interruptible()
		defer stop()
		if *watch {
			return watchRotation(ctx, c, client)
		}
		r, _, err := rotation(ctx, c, client, 0)
		if err != nil {
			return err
		}
		for _, line := range describeRotation(r) {
			c.Println(line)
		}
		return nil
	}
}

// rotation asks how far the rotation is, once the index is another one.
func rotation(ctx context.Context, c *verb.Call, client *api.Client, index uint64) (*ca.Rotation, uint64, error) {
	r := new(ca.Rotation)
	q := c.Query().WithContext(ctx)
	q.WaitIndex, q.WaitTime = index, 30*time.Second
	meta, err := client.Raw().Query(rotationPath, r, q)
	if err != nil {
		return nil, 0, verb.Errorf("Error asking about the rotation: %w", err)
	}
	return r, meta.LastIndex, nil
}

const (
	watchRetry    = time.Second
	watchPatience = time.Minute // with servers that do not answer
)

// watchRotation shows what changes until nothing more happens but that the old root is forgotten.
func watchRotation(ctx context.Context, c *verb.Call, client *api.Client) error {
	var index uint64
	shown := map[string]bool{}
	phase, warned := "", ""
	answered := time.Now()
	for {
		r, next, err := rotation(ctx, c, client, index)
		switch {
		case ctx.Err() != nil:
			return verb.Exit(130, nil)
		case err != nil && (refused(err) || time.Since(answered) > watchPatience):
			return err
		case err != nil:
			if warned != err.Error() {
				warned = err.Error()
				c.Warnf("%s; trying again", warned)
			}
			index = 0
			select {
			case <-ctx.Done():
			case <-time.After(watchRetry):
			}
			continue
		}
		index, answered = next, time.Now()
		if now := r.Phase + r.NewRootID; now != phase {
			phase = now
			clear(shown)
		}
		for _, line := range describeRotation(r) {
			if !shown[line] {
				shown[line] = true
				c.Printf("%s %s\n", answered.Format(time.TimeOnly), line)
			}
		}
		if r.Phase != ca.PhaseSpreading && r.Phase != ca.PhaseSigning {
			return nil
		}
	}
}

// refused reports whether an error will be the same when asked again.
func refused(err error) bool {
	status, ok := errors.AsType[api.StatusError](err)
	return ok && status.Code < http.StatusInternalServerError
}

// describeRotation tells how far a rotation is, in one or two lines.
func describeRotation(r *ca.Rotation) []string {
	id := r.NewRootID
	if len(id) > 11 {
		id = id[:11]
	}
	counts := func(what string) string {
		line := fmt.Sprintf("  %d of %d nodes %s", r.Confirmed, r.Required, what)
		if names := awaitedNodes(r); names != "" {
			line += "; waiting for " + names
		}
		return line
	}
	at := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }
	switch r.Phase {
	case ca.PhaseSpreading:
		return []string{
			fmt.Sprintf("%s: root %s is being made known; it signs once it is trusted, or at %s", r.Phase, id, at(r.Until)),
			counts("trust it"),
		}
	case ca.PhaseSigning:
		return []string{
			fmt.Sprintf("%s: root %s signs; certificates of the old root are being replaced", r.Phase, id),
			counts("have replaced theirs"),
		}
	case ca.PhaseRetiring:
		return []string{fmt.Sprintf("%s: root %s signs; %s trusted until %s", r.Phase, id, count(len(r.OldRootIDs), "old root is", "old roots are"), at(r.Until))}
	}
	return []string{fmt.Sprintf("%s: root %s is the only one", r.Phase, id)}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Bounds of what is told about those who are awaited.
const (
	maxAwaited = 5
	maxProxies = 3
)

// awaitedNodes names the nodes that have not confirmed, and what on them is awaited.
func awaitedNodes(r *ca.Rotation) string {
	var out []string
	for _, n := range r.Nodes {
		if n.Confirmed {
			continue
		}
		if len(out) == maxAwaited {
			return fmt.Sprintf("%s and %d more", strings.Join(out, "; "), r.Required-r.Confirmed-maxAwaited)
		}
		switch {
		case n.Seen.IsZero():
			out = append(out, n.Node+" (has not reported)")
		case len(n.Waiting) > 0:
			text := n.Node + ": " + strings.Join(n.Waiting[:min(len(n.Waiting), maxProxies)], ", ")
			if more := n.Missing - maxProxies; more > 0 {
				text += fmt.Sprintf(" and %d more", more)
			}
			out = append(out, text)
		case n.OldLeaves > 0:
			out = append(out, fmt.Sprintf("%s: %s", n.Node, count(n.OldLeaves, "certificate", "certificates")))
		default:
			out = append(out, n.Node)
		}
	}
	return strings.Join(out, "; ")
}
