package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// defaultLookEvery is how often auto_reload_config looks at the files. A change counts when a second look finds it the
// same, so that several files may be replaced one after the other.
const defaultLookEvery = time.Second

// watchFiles reloads the configuration when its files or those of certificates have another fingerprint than the one that
// is known, until ctx ends.
func (a *Agent) watchFiles(ctx context.Context, known [sha256.Size]byte) error {
	pending := known
	tick := time.NewTicker(cmp.Or(a.lookEvery, defaultLookEvery))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		seen := fingerprint(a.watched())
		switch {
		case seen == known:
			pending = seen
		case seen != pending:
			pending = seen // wait until it stays
		default:
			known = seen
			a.log.Info("files of the configuration have changed")
			// What changes while it reloads is seen at the next look, as is that other files are named now.
			if err := a.reload(ctx, true); err != nil {
				a.log.Error("configuration not reloaded", "error", err)
			}
		}
	}
}

// watched are the files and folders that a configuration was read from, and those of its certificates.
func (a *Agent) watched() []string {
	s := a.current()
	paths := append(slices.Clone(a.sources.Paths), s.Telemetry.OTLPCAFile)
	for _, t := range []config.TLSStanza{s.TLS.InternalRPC, s.TLS.HTTPS, s.TLS.GRPC} {
		paths = append(paths, t.CAFile, t.CAPath, t.CertFile, t.KeyFile)
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	return slices.DeleteFunc(paths, func(p string) bool { return p == "" })
}

// fingerprint changes when what is in files changes, or in files of folders.
func fingerprint(paths []string) (sum [sha256.Size]byte) {
	h := sha256.New()
	add := func(path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte(err.Error())
		}
		one := sha256.Sum256(data)
		h.Write([]byte(path))
		h.Write(one[:])
	}
	for _, path := range paths {
		entries, err := os.ReadDir(path)
		if err != nil { // a file
			add(path)
			continue
		}
		for _, e := range entries {
			if file := filepath.Join(path, e.Name()); !e.IsDir() {
				add(file)
			}
		}
	}
	h.Sum(sum[:0])
	return sum
}

// keepTLS gives settings that were reloaded by themselves the TLS flags in force: those wait for a reload that somebody
// asks for, since a file that is written in passing shall not open a listener. It reports whether there was a difference.
func keepTLS(s, running *config.Settings) (changed bool) {
	for _, p := range []struct{ to, from *config.TLSStanza }{
		{&s.TLS.InternalRPC, &running.TLS.InternalRPC}, {&s.TLS.HTTPS, &running.TLS.HTTPS}, {&s.TLS.GRPC, &running.TLS.GRPC},
	} {
		kept := *p.from
		kept.CAFile, kept.CAPath, kept.CertFile, kept.KeyFile = p.to.CAFile, p.to.CAPath, p.to.CertFile, p.to.KeyFile
		changed = changed || kept != *p.to
		*p.to = kept
	}
	return changed
}
