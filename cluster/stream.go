package cluster

import (
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

// alone is the StreamLayer of a server without others: nobody is accepted and
// nobody dialled.
type alone struct {
	address address
	close   sync.Once
	closed  chan struct{}
}

var _ raft.StreamLayer = (*alone)(nil)

func newAlone(a string) *alone { return &alone{address: address(a), closed: make(chan struct{})} }

// Accept waits until Close.
func (s *alone) Accept() (net.Conn, error) {
	<-s.closed
	return nil, net.ErrClosed
}

// Close ends Accept.
func (s *alone) Close() error {
	s.close.Do(func() { close(s.closed) })
	return nil
}

// Addr is the address the server is known by.
func (s *alone) Addr() net.Addr { return s.address }

// Dial always fails.
func (s *alone) Dial(to raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: this server is configured to be alone: %w", to, eboot.ErrUnavailable)
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
