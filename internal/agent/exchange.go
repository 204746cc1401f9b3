package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/fleet"
)

const (
	pinPatience   = 50 * time.Millisecond  // how long a boot script waits for a peer to know the pin
	pinTimeout    = 2 * time.Second        // of one message
	exchangeRetry = 5 * time.Second        // after one that failed
	pinQueue      = 64                     // batches that wait for one peer; beyond them it gets all pins later
	pinsAtOnce    = 1000                   // in one message
	planQueue     = 64                     // plans that wait for one peer; beyond them it gets all plans later
	sightQueue    = 4096                   // boots and events likewise
	sightsAtOnce  = 1000                   // of them in one message
	sightPause    = 200 * time.Millisecond // between two messages: what changes meanwhile goes in one
	levelTimeout  = time.Minute            // for all pins of a server, and for plans, boots and events
)

// exchange tells the other servers what was seen of slaves. Which bundle one has begun to
// boot: a server that dies in the middle of a boot is followed by another with the same
// bundle. Which files boots needed: the next one is fast wherever it lands. And how boots go
// and what else was observed: every server shows the whole fleet.
type exchange struct {
	fleet  *fleet.Fleet
	peers  *peers
	logger hclog.Logger

	wake  chan struct{}
	mu    sync.Mutex
	pins  *pinBatch // not handed out yet; nil: none
	plans planSet   // likewise
	seen  sights    // likewise
}

// pinBatch are pins that travel together. known is closed when one peer has them.
type pinBatch struct {
	pins  []eboot.Pin
	once  sync.Once
	known chan struct{}
}

func (b *pinBatch) acknowledge() { b.once.Do(func() { close(b.known) }) }

// planSet names plans, the files of which are looked up when they are sent.
type planSet map[eboot.PlanKey]bool

func newExchange(f *fleet.Fleet, p *peers, logger hclog.Logger) *exchange {
	return &exchange{fleet: f, peers: p, logger: logger, wake: make(chan struct{}, 1), plans: planSet{}, seen: newSights()}
}

// share returns when one other server knows the pin, or after pinPatience: a boot does
// not wait for a server that is about to fail.
func (x *exchange) share(pin eboot.Pin) {
	batch := x.tell(pin)
	if batch == nil {
		return
	}
	patience := time.NewTimer(pinPatience)
	defer patience.Stop()
	select {
	case <-batch.known:
	case <-patience.C:
	}
}

// tell has the other servers told of a pin; nil when there are none.
func (x *exchange) tell(pin eboot.Pin) *pinBatch {
	if len(x.peers.living()) == 0 {
		return nil
	}
	x.mu.Lock()
	if x.pins == nil {
		x.pins = &pinBatch{known: make(chan struct{})}
	}
	batch := x.pins
	batch.pins = append(batch.pins, pin)
	x.mu.Unlock()
	x.rouse()
	return batch
}

// learned has the other servers told of a plan that has grown. Nobody waits for that.
func (x *exchange) learned(key eboot.PlanKey) {
	if len(x.peers.living()) == 0 {
		return
	}
	x.mu.Lock()
	x.plans[key] = true
	x.mu.Unlock()
	x.rouse()
}

func (x *exchange) rouse() {
	select {
	case x.wake <- struct{}{}:
	default: // it is awake
	}
}

// run hands out what there is to tell, and everything to a server that appears, until ctx
// ends.
func (x *exchange) run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	links := map[string]*link{}
	for {
		changed := x.peers.refreshed()
		for _, id := range x.peers.living() {
			if links[id] == nil {
				l := x.newLink(id)
				linked, cancel := context.WithCancel(ctx)
				l.end = cancel
				links[id] = l
				group.Go(func() { l.pins.run(linked) })
				group.Go(func() { l.plans.run(linked) })
				group.Go(func() { l.seen.run(linked) })
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

func (x *exchange) hand(links map[string]*link) {
	x.mu.Lock()
	pins, plans, seen := x.pins, x.plans, x.seen
	x.pins, x.plans, x.seen = nil, planSet{}, newSights()
	x.mu.Unlock()
	for id, l := range links {
		if !x.peers.alive(id) {
			continue
		}
		if pins != nil {
			l.pins.send(pins)
		}
		if len(plans) > 0 {
			l.sendPlans(plans)
		}
		if seen.size() > 0 {
			l.sendSights(seen)
		}
	}
}

// link is the exchange with one server.
type link struct {
	pins  *lane[*pinBatch]
	plans *lane[planSet]
	seen  *lane[sights]
	alive bool // as of the latest notice
	end   context.CancelFunc
}

func (x *exchange) newLink(server string) *link {
	return &link{
		pins: &lane[*pinBatch]{
			exchange: x, server: server, queue: make(chan *pinBatch, pinQueue), behind: make(chan struct{}, 1),
			give: func(ctx context.Context, batch *pinBatch) error {
				err := x.givePins(ctx, server, batch.pins)
				if err == nil {
					batch.acknowledge()
				}
				return err
			},
			level: func(ctx context.Context) error { return x.levelPins(ctx, server) },
		},
		plans: &lane[planSet]{
			exchange: x, server: server, queue: make(chan planSet, 1), behind: make(chan struct{}, 1),
			give: func(ctx context.Context, plans planSet) error {
				return x.givePlans(ctx, server, func(p eboot.LearnedPlan) bool { return plans[p.PlanKey] })
			},
			level: func(ctx context.Context) error {
				return x.givePlans(ctx, server, func(eboot.LearnedPlan) bool { return true })
			},
		},
		seen: &lane[sights]{
			exchange: x, server: server, queue: make(chan sights, 1), behind: make(chan struct{}, 1),
			give:  func(ctx context.Context, seen sights) error { return x.giveSights(ctx, server, seen) },
			level: func(ctx context.Context) error { return x.levelSights(ctx, server) },
		},
	}
}

func (l *link) notice(alive bool) {
	if alive && !l.alive {
		l.pins.fallBehind()
		l.plans.fallBehind()
		l.seen.fallBehind()
	}
	l.alive = alive
}

// sendPlans adds plans to those that wait. It is the only one that sends them.
func (l *link) sendPlans(plans planSet) {
	select {
	case waiting := <-l.plans.queue:
		plans = maps.Clone(plans)
		maps.Copy(plans, waiting)
	default:
	}
	if len(plans) > planQueue {
		l.plans.fallBehind()
		return
	}
	l.plans.send(plans)
}

// lane brings what is of one kind to one server, in a goroutine of its own: a pin, for which
// a boot waits, does not wait for a plan.
type lane[T any] struct {
	exchange *exchange
	server   string
	queue    chan T
	behind   chan struct{} // the server has appeared, or has missed something
	give     func(context.Context, T) error
	level    func(context.Context) error // makes up for what was missed
}

func (l *lane[T]) fallBehind() {
	select {
	case l.behind <- struct{}{}:
	default:
	}
}

func (l *lane[T]) send(news T) {
	select {
	case l.queue <- news:
	default: // it is slow; when the queue is worked off it has missed this one
		l.fallBehind()
	}
}

func (l *lane[T]) run(ctx context.Context) {
	var retry <-chan time.Time
	for {
		var err error
		select {
		case news := <-l.queue:
			err = l.give(ctx, news)
		case <-l.behind:
			err = l.level(ctx)
		case <-retry:
			retry = nil
			if l.exchange.peers.alive(l.server) {
				err = l.level(ctx)
			}
		case <-ctx.Done():
			return
		}
		if err != nil && ctx.Err() == nil {
			l.exchange.logger.Debug("what was seen of slaves is not exchanged; trying again", "server", l.server, "error", err)
			retry = time.After(exchangeRetry)
		}
	}
}

func (x *exchange) givePins(ctx context.Context, server string, pins []eboot.Pin) error {
	ctx, cancel := context.WithTimeout(ctx, pinTimeout)
	defer cancel()
	return x.peers.rpc.SendPins(ctx, server, pins)
}

// levelPins makes two servers know each other's pins.
func (x *exchange) levelPins(ctx context.Context, server string) error {
	for batch := range slices.Chunk(x.fleet.Pins(), pinsAtOnce) {
		if err := x.givePins(ctx, server, batch); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, levelTimeout)
	defer cancel()
	pins, err := x.peers.rpc.Pins(ctx, server)
	if err == nil {
		x.fleet.MergePins(pins)
	}
	return err
}

// givePlans gives a server the plans that wanted is true for. It does the same with its
// own when this one appears to it.
func (x *exchange) givePlans(ctx context.Context, server string, wanted func(eboot.LearnedPlan) bool) error {
	plans := slices.DeleteFunc(x.fleet.Plans(), func(p eboot.LearnedPlan) bool { return !wanted(p) })
	ctx, cancel := context.WithTimeout(ctx, levelTimeout)
	defer cancel()
	return knownTo(x.peers.rpc.SendPlans(ctx, server, plans))
}

// knownTo takes it for done when a server is of an older version, which knows nothing of what
// it was sent.
func knownTo(err error) error {
	if errors.Is(err, eboot.ErrNotFound) {
		return nil
	}
	return err
}

// TakePins merges the pins of another server.
func (a *Agent) TakePins(pins []eboot.Pin) { a.fleet.MergePins(pins) }

// Pins returns the pins that this server knows.
func (a *Agent) Pins() []eboot.Pin { return a.fleet.Pins() }

// TakePlans merges what another server learned.
func (a *Agent) TakePlans(plans []eboot.LearnedPlan) {
	for _, p := range plans {
		a.fleet.MergePlan(p.PlanKey, p.Files)
	}
}
