package fleet

import (
	"net/netip"
	"sync"
	"time"

	"eboot"
)

// Connection is one TCP connection of a slave. Its methods are called by the
// goroutine that serves it, one at a time; Closed is the last.
type Connection struct {
	fleet *Fleet
	slave netip.Addr
	erts  string

	placed bool  // it is decided whether this carries a boot; owned by the serving goroutine
	boot   *boot // the boot it carries; guarded by Fleet.mu
	began  bool  // the boot it carries began with a script on this connection; likewise
	claim        // likewise

	mu          sync.Mutex // guards what follows; taken after Fleet.mu
	requests    int64      // since the connection began to carry its boot
	bytes       int64      // likewise
	answering   bool       // the latest request has not been answered yet
	deprived    bool       // there may be a former
	latestAt    time.Time
	latest      text
	uncoveredAt time.Time
	uncovered   text
}

// claim is how a connection lost its boot. The zero claim: it did not.
type claim struct {
	former *boot     // the boot that another server claimed
	since  time.Time // when that was
}

// Connect notes a connection of slave to the listener of ERTS version erts.
func (f *Fleet) Connect(slave netip.Addr, erts string) *Connection {
	c := &Connection{fleet: f, slave: slave.Unmap(), erts: erts}
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.address(c.slave)
	a.seen = true
	a.leave() // connected addresses are not forgotten
	a.connections[c] = struct{}{}
	f.open++
	return c
}

// reportOperation is the request that has no reply.
const reportOperation = "eboot_report"

// Requested notes one request: operation is the word of the protocol ("get",
// "eboot_open"), name its path, empty when it has none. It keeps neither.
func (c *Connection) Requested(operation string, name []byte) {
	now := c.fleet.options.Now()
	c.mu.Lock()
	c.requests++
	c.answering = operation != reportOperation
	c.latestAt = now
	c.latest.set(operation, name)
	c.mu.Unlock()
}

// Uncovered notes that the request just noted named a path below no root.
func (c *Connection) Uncovered(name []byte) {
	now := c.fleet.options.Now()
	c.mu.Lock()
	c.uncoveredAt = now
	c.uncovered.set("", name)
	c.mu.Unlock()
}

// Sent notes n bytes of the reply to the request just noted.
func (c *Connection) Sent(n int) {
	if !c.placed {
		c.place()
	}
	c.mu.Lock()
	c.answering = false
	c.bytes += int64(n)
	deprived := c.deprived
	c.mu.Unlock()
	if deprived {
		c.fleet.mu.Lock()
		defer c.fleet.mu.Unlock()
		c.fleet.regain(c)
	}
}

// place lets a connection that did not begin with a boot script carry the latest
// stock boot of its address, if there is one, also when it began on another server. It must
// not happen before the first request is known not to be for a boot script, so its answer is
// the moment.
func (c *Connection) place() {
	c.placed = true
	f := c.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.latestBoot(f.addresses[c.slave], c.erts); b != nil {
		f.carry(c, b)
	}
}

// BootBegan notes that the connection asked for a boot script and gets that of
// bundle b, which channel points to, or rollout brings (its id, else empty): this connection
// now carries a new boot, to which the request being answered counts, and the address is pinned to b. It
// returns the pin, which another server is to know before the script is sent; the
// zero Pin for a slave that cannot be pinned, because its address is not of IPv4 or
// its ERTS version is none.
func (c *Connection) BootBegan(channel string, b eboot.Bundle, rollout string) eboot.Pin {
	c.placed = true
	return c.fleet.begin(c, channel, b, rollout)
}

// Closed notes the end of the connection. bySlave: the slave closed or reset it, and not this
// server for a reason of its own.
func (c *Connection) Closed(bySlave bool) {
	f := c.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	f.release(c, bySlave)
	c.former = nil
	a := f.addresses[c.slave]
	delete(a.connections, c)
	f.open--
	c.addTo(&a.sighting, &a.uncoveredAt)
	if len(a.connections) == 0 {
		a.enter(f.idle)
	}
}

// addTo enters what the connection saw into s, as far as it is newer.
func (c *Connection) addTo(s *eboot.Sighting, uncoveredAt *time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.latestAt.After(s.LatestAt) {
		s.LatestAt, s.LatestRequest = c.latestAt, c.latest.String()
	}
	if c.uncoveredAt.After(*uncoveredAt) {
		*uncoveredAt, s.UncoveredPath = c.uncoveredAt, c.uncovered.String()
	}
}
