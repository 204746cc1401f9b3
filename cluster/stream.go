package cluster

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

// gate lets nobody in before this server may take part.
type gate struct {
	raft.StreamLayer
	open <-chan struct{}
}

// Accept waits for a connection that may come in.
func (g *gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.StreamLayer.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case <-g.open:
			return conn, nil
		default:
			conn.Close() // it was never used
		}
	}
}

// addresses finds a server by its id: where gossip sees it, else where the newest
// configuration has it (R7). It names the id too, for the stream, which makes sure
// of it; and Raft, which remembers by this name whom it gave its vote, never takes one
// server for another that was at the same address.
type addresses struct {
	own  Peer
	book *book
	raft atomic.Pointer[raft.Raft]
}

var _ raft.ServerAddressProvider = (*addresses)(nil)

// ServerAddr returns host:port#ID.
func (a *addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if string(id) == a.own.ID {
		return named(a.own.Address, id), nil
	}
	if p, ok := a.book.peer(string(id)); ok {
		return named(p.Address, id), nil
	}
	if r := a.raft.Load(); r != nil {
		for _, s := range r.GetConfiguration().Configuration().Servers {
			if s.ID == id {
				return named(string(s.Address), id), nil
			}
		}
	}
	return "", fmt.Errorf("no address of server %s is known: %w", id, eboot.ErrNotFound)
}

func named(address string, id raft.ServerID) raft.ServerAddress {
	return raft.ServerAddress(address + "#" + string(id))
}

// alone is the StreamLayer of a server without others: nobody is accepted and
// nobody dialled.
type alone struct {
	address peerAddress
	close   sync.Once
	closed  chan struct{}
}

var _ raft.StreamLayer = (*alone)(nil)

func newAlone(a string) *alone { return &alone{address: peerAddress(a), closed: make(chan struct{})} }

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

type peerAddress string

func (peerAddress) Network() string  { return "tcp" }
func (a peerAddress) String() string { return string(a) }
