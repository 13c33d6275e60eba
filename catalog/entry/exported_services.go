package entry

import (
	"fmt"
)

// ExportedServices say which peers see which services (spec/connect.md section 8.10). There is one entry, "default".
type ExportedServices struct {
	Header
	Services []ExportedService `json:""`
}

// An ExportedService is a service, or all when the name is the wildcard, with those who see it.
type ExportedService struct {
	Name      string
	Consumers []ServiceConsumer
}

// A ServiceConsumer is one peer, or something that has no effect.
type ServiceConsumer struct {
	Peer          string `json:",omitempty" alias:"peername"`
	Partition     string `json:",omitempty"` // accepted, without effect
	SamenessGroup string `json:",omitempty"` // always refused
}

// Validate checks the entry.
func (e *ExportedServices) Validate() error {
	if e.Name != ExportedServicesName {
		return fmt.Errorf("exported-services Name must be %q", ExportedServicesName)
	}
	for i, s := range e.Services {
		if s.Name == "" {
			return fmt.Errorf("Services[%d]: service name cannot be empty", i)
		}
		if len(s.Consumers) == 0 {
			return fmt.Errorf("Services[%d]: must have at least one consumer", i)
		}
		for j, c := range s.Consumers {
			var problem string
			switch {
			case count(c.Peer != "", c.Partition != "", c.SamenessGroup != "") > 1:
				problem = "must define at most one of Peer, Partition, or SamenessGroup"
			case c.SamenessGroup != "":
				problem = "sameness groups are a consul enterprise feature"
			case c.Peer == Wildcard:
				problem = "exporting to all peers (wildcard) is not supported"
			default:
				continue
			}
			return fmt.Errorf("Services[%d].Consumers[%d]: %s", i, j, problem)
		}
	}
	return nil
}
