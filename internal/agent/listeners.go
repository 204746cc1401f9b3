package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/bootproto"
	"eboot/config"
	"eboot/fsm"
)

// listenerSet keeps one TCP port open for each ERTS version that a channel
// serves: EBOOT's TCP carries no version, so the port stands for it. A port once
// opened stays open until the server stops.
type listenerSet struct {
	binds       []netip.Addr
	first, last uint16 // the range to choose from; 0: any free port
	files       *bootproto.FileServer
	serving     *stage
	logger      hclog.Logger

	mu     sync.Mutex
	failed map[string]bool                   // ERTS versions whose failure was logged
	ports  atomic.Pointer[map[string]uint16] // by ERTS
}

func newListenerSet(c config.Boot, files *bootproto.FileServer, serving *stage, logger hclog.Logger) *listenerSet {
	l := &listenerSet{binds: c.Bind, first: c.TCPPorts.First, last: c.TCPPorts.Last, files: files, serving: serving, logger: logger, failed: map[string]bool{}}
	l.ports.Store(&map[string]uint16{})
	return l
}

// port returns the TCP port for an ERTS version; false: none is open.
func (l *listenerSet) port(erts string) (uint16, bool) {
	port, ok := (*l.ports.Load())[erts]
	return port, ok
}

// follow opens a port for each ERTS version of the channels that has none. When
// none is to be had it says so once, and slaves of that version get no answer. It
// reports whether every version has a port.
func (l *listenerSet) follow(state *fsm.State) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	complete := true
	for b := range channelBundles(state) {
		open := *l.ports.Load()
		if _, ok := open[b.ERTS]; ok {
			continue
		}
		port, listeners, err := l.listen()
		if err != nil {
			complete = false
			if !l.failed[b.ERTS] {
				l.failed[b.ERTS] = true
				l.logger.Error("no TCP port for slaves of this ERTS version; widen boot.tcp_ports, or free one", "erts", b.ERTS, "error", err)
			}
			continue
		}
		delete(l.failed, b.ERTS)
		if !l.serve(listeners, b.ERTS) {
			return true // the server is stopping
		}
		next := make(map[string]uint16, len(open)+1)
		for erts, p := range open {
			next[erts] = p
		}
		next[b.ERTS] = port
		l.ports.Store(&next)
		l.logger.Info("serving files", "erts", b.ERTS, "port", port)
	}
	return complete
}

func (l *listenerSet) serve(listeners []net.Listener, erts string) bool {
	for i, ln := range listeners {
		serve := func(ctx context.Context) error { return l.files.Serve(ctx, ln, erts) }
		if l.serving.run("files for ERTS "+erts, serve) {
			continue
		}
		for _, unserved := range listeners[i:] {
			_ = unserved.Close() // nothing was accepted on it
		}
		return false
	}
	return true
}

// listen binds the first port of the range that is free on every address.
func (l *listenerSet) listen() (uint16, []net.Listener, error) {
	if l.first == 0 {
		return l.listenOn(0)
	}
	var last error
	for port := int(l.first); port <= int(l.last); port++ {
		if l.inUse(uint16(port)) {
			continue
		}
		chosen, listeners, err := l.listenOn(uint16(port))
		if err == nil {
			return chosen, listeners, nil
		}
		last = err
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if last == nil {
		last = fmt.Errorf("every port serves another version: %w", syscall.EADDRINUSE)
	}
	return 0, nil, fmt.Errorf("ports %d-%d: %w", l.first, l.last, last)
}

func (l *listenerSet) inUse(port uint16) bool {
	for _, p := range *l.ports.Load() {
		if p == port {
			return true
		}
	}
	return false
}

func (l *listenerSet) listenOn(port uint16) (uint16, []net.Listener, error) {
	var listeners []net.Listener
	for _, bind := range l.binds {
		ln, err := bootproto.ListenFiles(netip.AddrPortFrom(bind, port))
		if err != nil {
			for _, open := range listeners {
				err = errors.Join(err, open.Close())
			}
			return 0, nil, err
		}
		listeners = append(listeners, ln)
		port = ln.Addr().(*net.TCPAddr).AddrPort().Port() // port 0: the first choice binds the others
	}
	return port, listeners, nil
}

// describe lists the open ports in order of ERTS.
func (l *listenerSet) describe() []eboot.BootListener {
	open := []eboot.BootListener{}
	for erts, port := range *l.ports.Load() {
		for _, bind := range l.binds {
			open = append(open, eboot.BootListener{ERTS: erts, Address: netip.AddrPortFrom(bind, port).String()})
		}
	}
	slices.SortFunc(open, func(a, b eboot.BootListener) int {
		return strings.Compare(a.ERTS+" "+a.Address, b.ERTS+" "+b.Address)
	})
	return open
}
