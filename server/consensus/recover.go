package consensus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// The files of recovery, in the folder of Disk.
const (
	peersFile = "peers.json" // who the members are from now on; read once
	infoFile  = "peers.info" // what that is for
)

// maxPeers bounds the size of peers.json.
const maxPeers = 1 << 20

const info = `When most servers of a cluster are lost for good, the others can go on without them.
Stop all that are left. On each, put the same file peers.json beside this one. It lists those that are left:

  [
    {"id": "adf4238a-882b-9ddc-4a9d-5b6758e4159e", "address": "10.1.0.1:8300", "non_voter": false}
  ]

The ID is in the file node-id of the data directory; the address is that of the server port.
Start them again: each reads the file once, deletes it, and they elect a leader.
What only the lost servers had is gone, and what was not yet on most of them may now have happened.
`

// readPeers reads peers.json; nil when there is none.
func readPeers(dir string) ([]Server, error) {
	path := filepath.Join(dir, peersFile)
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case st.Size() > maxPeers:
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxPeers)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	servers, err := ParsePeers(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return servers, nil
}

// ParsePeers reads the list of members in peers.json: objects with id, address and non_voter. There is at least one
// that votes, and none twice.
func ParsePeers(data []byte) ([]Server, error) {
	var list []struct {
		ID       string `json:"id"`
		Address  string `json:"address"`
		NonVoter bool   `json:"non_voter"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	var servers []Server
	ids, addresses, voters := map[string]bool{}, map[string]bool{}, 0
	for i, p := range list {
		switch {
		case p.ID == "" || p.Address == "":
			return nil, fmt.Errorf("server %d has no id or no address", i+1)
		case ids[p.ID]:
			return nil, fmt.Errorf("the id %q is there twice", p.ID)
		case addresses[p.Address]:
			return nil, fmt.Errorf("the address %q is there twice", p.Address)
		}
		ids[p.ID], addresses[p.Address] = true, true
		if !p.NonVoter {
			voters++
		}
		servers = append(servers, Server{p.ID, p.Address, !p.NonVoter})
	}
	if voters == 0 {
		return nil, errors.New("no server of the list votes")
	}
	return servers, nil
}

// recover makes the members those that the storage asks for, if it does.
func (r *Raft) recover(conf *raft.Config, s *Storage, trans raft.Transport) error {
	if s.Recovery == nil {
		return nil
	}
	servers, err := s.Recovery()
	if err != nil || servers == nil {
		return err
	}
	var members raft.Configuration
	for _, p := range servers {
		suffrage := raft.Voter
		if !p.Voter {
			suffrage = raft.Nonvoter
		}
		members.Servers = append(members.Servers, raft.Server{Suffrage: suffrage, ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address)})
	}
	r.log.Warn("recovering: these are the members now", "servers", len(servers))
	if err := raft.RecoverCluster(conf, r.cfg.FSM, s.Logs, s.Stable, s.Snapshots, trans, members); err != nil {
		return err
	}
	if s.Recovered == nil {
		return nil
	}
	return s.Recovered()
}
