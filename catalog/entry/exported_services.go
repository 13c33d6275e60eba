package entry

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

// A ServiceConsumer is one peer.
type ServiceConsumer struct {
	Peer          string `json:",omitempty" alias:"peername"`
	Partition     string `json:",omitempty"` // only "default"
	SamenessGroup string `json:",omitempty"` // always refused
}
