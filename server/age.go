package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// ageFile remembers when a server was last part of its cluster.
const ageFile = "server_metadata.json"

// seenEvery is how often that is noted.
const seenEvery = time.Hour

type age struct {
	LastSeenUnix int64 `json:"last_seen_unix"`
}

// checkAge refuses to start a server that was away for too long: it may know what the others have long forgotten. It
// returns what notes that the server is there.
func (s *Server) checkAge() (seen func(context.Context) error, err error) {
	if s.cfg.DataDir == "" {
		return func(context.Context) error { return nil }, nil
	}
	path := filepath.Join(s.cfg.DataDir, ageFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read when this server was last seen: %w", err)
	default:
		var a age
		if err := json.Unmarshal(data, &a); err != nil {
			s.log.Warn("cannot tell how long this server was away", "file", path, "error", err)
		} else if time.Since(time.Unix(a.LastSeenUnix, 0)) > s.cfg.RejoinAgeMax {
			return nil, fmt.Errorf("refusing to rejoin cluster because server has been offline for more than the configured server_rejoin_age_max (%s) - consider wiping your data dir", s.cfg.RejoinAgeMax)
		}
	}
	note := func() {
		data, err := json.Marshal(age{time.Now().Unix()})
		if err == nil {
			err = os.WriteFile(path+".new", data, 0o600)
		}
		if err == nil {
			err = os.Rename(path+".new", path)
		}
		if err != nil {
			s.log.Warn("cannot note that this server is there", "error", err)
		}
	}
	return func(ctx context.Context) error {
		note()
		tick := time.NewTicker(seenEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				note()
				return nil
			case <-tick.C:
				note()
			}
		}
	}, nil
}
