package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/fleet"
)

const (
	pinPatience = 50 * time.Millisecond // how long a boot script waits for a peer to know the pin
	pinTimeout  = 2 * time.Second       // of one exchange
	pinRetry    = 5 * time.Second       // after one that failed
	pinQueue    = 64                    // batches that wait for one peer; beyond them it gets all pins later
	pinsAtOnce  = 1000                  // in one message
	pinsTimeout = time.Minute           // for all pins of a server
)

// pinExchange tells the other servers which bundle a slave has begun to boot, so that
// one that dies in the middle of a boot is followed by another with the same bundle.
type pinExchange struct {
	fleet  *fleet.Fleet
	peers  *peers
	logger hclog.Logger

	wake    chan struct{}
	mu      sync.Mutex
	waiting *pinBatch // not handed out yet; nil: none
}

// pinBatch are pins that travel together. known is closed when one peer has them.
type pinBatch struct {
	pins  []eboot.Pin
	once  sync.Once
	known chan struct{}
}

func (b *pinBatch) acknowledge() { b.once.Do(func() { close(b.known) }) }

func newPinExchange(f *fleet.Fleet, p *peers, logger hclog.Logger) *pinExchange {
	return &pinExchange{fleet: f, peers: p, logger: logger, wake: make(chan struct{}, 1)}
}

// share returns when one other server knows the pin, or after pinPatience: a boot does
// not wait for a server that is about to fail.
func (x *pinExchange) share(pin eboot.Pin) {
	if len(x.peers.living()) == 0 {
		return
	}
	x.mu.Lock()
	if x.waiting == nil {
		x.waiting = &pinBatch{known: make(chan struct{})}
	}
	batch := x.waiting
	batch.pins = append(batch.pins, pin)
	x.mu.Unlock()
	select {
	case x.wake <- struct{}{}:
	default: // it is awake
	}
	patience := time.NewTimer(pinPatience)
	defer patience.Stop()
	select {
	case <-batch.known:
	case <-patience.C:
	}
}

// run hands pins out, and gets all of a server's when it appears, until ctx ends.
func (x *pinExchange) run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	links := map[string]*pinLink{}
	for {
		changed := x.peers.refreshed()
		for _, id := range x.peers.living() {
			if links[id] == nil {
				l := &pinLink{exchange: x, server: id, queue: make(chan *pinBatch, pinQueue), returned: make(chan struct{}, 1)}
				linked, cancel := context.WithCancel(ctx)
				l.end = cancel
				links[id] = l
				group.Go(func() { l.run(linked) })
			}
		}
		for id, l := range links {
			l.notice(x.peers.alive(id))
			if _, heard := x.peers.member(id); !heard { // gossip has forgotten it
				l.end()
				delete(links, id)
			}
		}
		for again := true; again; {
			select {
			case <-x.wake:
				x.hand(links)
			case <-changed:
				again = false
			case <-ctx.Done():
				return nil
			}
		}
	}
}

func (x *pinExchange) hand(links map[string]*pinLink) {
	x.mu.Lock()
	batch := x.waiting
	x.waiting = nil
	x.mu.Unlock()
	if batch == nil {
		return
	}
	for id, l := range links {
		if x.peers.alive(id) {
			l.send(batch)
		}
	}
}

// pinLink is the exchange with one server.
type pinLink struct {
	exchange *pinExchange
	server   string
	queue    chan *pinBatch
	returned chan struct{} // the server has appeared
	alive    bool          // as of the latest notice
	end      context.CancelFunc
}

func (l *pinLink) notice(alive bool) {
	if alive && !l.alive {
		select {
		case l.returned <- struct{}{}:
		default:
		}
	}
	l.alive = alive
}

func (l *pinLink) send(batch *pinBatch) {
	select {
	case l.queue <- batch:
	default: // it is slow; when the queue is worked off it has missed this one
		select {
		case l.returned <- struct{}{}:
		default:
		}
	}
}

func (l *pinLink) run(ctx context.Context) {
	var retry <-chan time.Time
	for {
		var err error
		select {
		case batch := <-l.queue:
			if err = l.exchange.give(ctx, l.server, batch.pins); err == nil {
				batch.acknowledge()
			}
		case <-l.returned:
			err = l.exchange.level(ctx, l.server)
		case <-retry:
			retry = nil
			if l.exchange.peers.alive(l.server) {
				err = l.exchange.level(ctx, l.server)
			}
		case <-ctx.Done():
			return
		}
		if err != nil && ctx.Err() == nil {
			l.exchange.logger.Debug("pins not exchanged; trying again", "server", l.server, "error", err)
			retry = time.After(pinRetry)
		}
	}
}

func (x *pinExchange) give(ctx context.Context, server string, pins []eboot.Pin) error {
	ctx, cancel := context.WithTimeout(ctx, pinTimeout)
	defer cancel()
	return x.peers.rpc.SendPins(ctx, server, pins)
}

// level makes two servers know each other's pins.
func (x *pinExchange) level(ctx context.Context, server string) error {
	for batch := range slices.Chunk(x.fleet.Pins(), pinsAtOnce) {
		if err := x.give(ctx, server, batch); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pinsTimeout)
	defer cancel()
	pins, err := x.peers.rpc.Pins(ctx, server)
	if err == nil {
		x.fleet.MergePins(pins)
	}
	return err
}

// TakePins merges the pins of another server.
func (a *Agent) TakePins(pins []eboot.Pin) { a.fleet.MergePins(pins) }

// Pins returns the pins that this server knows.
func (a *Agent) Pins() []eboot.Pin { return a.fleet.Pins() }
