package agent

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/hostinfo"
	"github.com/sarnmesh/sarn/internal/version"
)

// nodeID returns the ID of this node: the configured one, else that of the data folder, else a new one that is kept
// there (spec/registry.md section 13): random, or made of the host's with disable_host_node_id = false.
func nodeID(s *config.Settings) (string, error) {
	if id, err := savedNodeID(s); id != "" || err != nil {
		return id, err
	}
	id := strings.ToLower(s.Node.ID)
	if id == "" && !s.Node.DisableHostID {
		id = hostNodeID()
	}
	if id == "" {
		id = uuid.NewString()
	}
	if s.DataDir != "" {
		if err := writeFile(nodeIDFile(s), []byte(id)); err != nil {
			return "", err
		}
	}
	return id, nil
}

// hostNodeID is an ID that is the same whenever this host is asked, and does not show the host's own; empty when the host
// has none.
func hostNodeID() string {
	host := hostinfo.Collect("").Host
	if host == nil || host.HostID == "" {
		return ""
	}
	sum := sha512.Sum512([]byte(host.HostID))
	return uuid.UUID(sum[:16]).String()
}

func nodeIDFile(s *config.Settings) string { return filepath.Join(s.DataDir, "node-id") }

// savedNodeID returns the ID that the data folder has, empty when it has none or another is configured.
func savedNodeID(s *config.Settings) (string, error) {
	if s.Node.ID != "" || s.DataDir == "" {
		return "", nil
	}
	data, err := os.ReadFile(nodeIDFile(s))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	id := strings.ToLower(strings.TrimSpace(string(data)))
	if err := catalog.CheckUUID(id); err != nil {
		return "", fmt.Errorf("NodeID in %s is invalid: %w", nodeIDFile(s), err)
	}
	return id, nil
}

// writeFile replaces a file at once or not at all; only its owner may read it.
func writeFile(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(data); err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// node describes this node as the catalog has it.
func node(s *config.Settings, id string) catalog.Node {
	n := catalog.Node{
		ID: id, Node: s.Node.Name, Address: s.Addresses.Advertise.String(), Datacenter: s.Node.Datacenter,
		TaggedAddresses: s.Node.TaggedAddresses, Meta: nodeMeta(s),
	}
	if s.Node.Region != "" || s.Node.Zone != "" {
		n.Locality = &catalog.Locality{Region: s.Node.Region, Zone: s.Node.Zone}
	}
	return n
}

// firstNodeWait is how long a server registers nothing that the leader has not registered as a member.
const firstNodeWait = 10 * time.Second

// awaitOwnNode waits until the leader has registered this server's node. What the leader registers and what the agent
// does then never mix, and who finds the node in the catalog finds its health and its instance, too.
func (a *Agent) awaitOwnNode(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstNodeWait)
	defer cancel()
	for {
		v := a.server.Store().WatchView()
		if v.Check(a.node.Node, catalog.SerfCheckID) != nil || v.Wait(ctx) != nil {
			return
		}
	}
}

// nodeMeta is the configured meta and what every agent tells of itself.
func nodeMeta(s *config.Settings) map[string]string {
	meta := map[string]string{"consul-network-segment": "", "consul-version": version.Compat}
	for k, v := range s.Node.Meta {
		meta[k] = v
	}
	return meta
}
