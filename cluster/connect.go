package cluster

import (
	"net"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// Transport is how servers reach each other for Raft: a listener for those who
// come, and Connect. Close closes it, and it then closes the connections it has accepted,
// which the library does not.
type Transport interface {
	net.Listener
	// Connect connects to the server at address (host:port). It must have this id,
	// unless that is empty: addresses change hands, and what one server is told must not
	// be counted for another.
	Connect(address, id string, timeout time.Duration) (net.Conn, error)
}

// NewStream makes a Transport what Options.Stream wants.
func NewStream(t Transport) raft.StreamLayer { return stream{t} }

type stream struct{ Transport }

// Dial takes what the address provider made, HOST:PORT#ID, or a plain HOST:PORT.
func (s stream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	address, id, _ := strings.Cut(string(to), "#")
	return s.Connect(address, id, timeout)
}
