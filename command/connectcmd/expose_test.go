package connectcmd

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
)

func TestAddService(t *testing.T) {
	web := []api.IngressService{{Name: "web", Hosts: []string{"a"}}}
	tests := []struct {
		name     string
		had      []api.IngressListener
		port     int
		protocol string
		service  api.IngressService
		want     []api.IngressListener
		updated  bool
		err      string
	}{
		{"no listener yet", nil, 80, "http", web[0], []api.IngressListener{{Port: 80, Protocol: "http", Services: web}}, false, ""},
		{"another port", []api.IngressListener{{Port: 80, Protocol: "http", Services: web}}, 81, "tcp", api.IngressService{Name: "db"},
			[]api.IngressListener{{Port: 80, Protocol: "http", Services: web}, {Port: 81, Protocol: "tcp", Services: []api.IngressService{{Name: "db"}}}}, false, ""},
		{"another service", []api.IngressListener{{Port: 80, Protocol: "http", Services: web}}, 80, "http", api.IngressService{Name: "api"},
			[]api.IngressListener{{Port: 80, Protocol: "http", Services: []api.IngressService{web[0], {Name: "api"}}}}, false, ""},
		{"other hosts", []api.IngressListener{{Port: 80, Protocol: "http", Services: []api.IngressService{{Name: "web", Hosts: []string{"b"}, MaxConnections: new(uint32)}}}},
			80, "http", web[0],
			[]api.IngressListener{{Port: 80, Protocol: "http", Services: []api.IngressService{{Name: "web", Hosts: []string{"a"}, MaxConnections: new(uint32)}}}}, true, ""},
		{"another protocol", []api.IngressListener{{Port: 80, Protocol: "http"}}, 80, "tcp", web[0], []api.IngressListener{{Port: 80, Protocol: "http"}}, false,
			`Listener on port 80 already configured with conflicting protocol "http"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conf := &api.IngressGatewayConfigEntry{Listeners: tt.had}
			updated, err := addService(conf, tt.port, tt.protocol, tt.service)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if diff := cmp.Diff(tt.want, conf.Listeners); diff != "" || updated != tt.updated || text != tt.err {
				t.Errorf("updated %v, error %q; listeners (-want +got):\n%s", updated, text, diff)
			}
		})
	}
}
