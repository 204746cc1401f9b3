package bootproto

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/ipv4"
)

// Query is a slave that looks for a boot server.
type Query struct {
	Slave netip.AddrPort // where it asks from, IPv4; one port is one search
	Asked netip.Addr     // the address of ours that it asked; for a broadcast, our address in that network
	ERTS  string         // the version of its runtime system, as "13.1.5": at most 32 letters, digits, and .-_+~
}

// Offer is a server's willingness to boot a slave.
type Offer struct {
	Rank     int    // this server's place in the slave's order of servers, from 0
	LastRank int    // the place of the last one
	Port     uint16 // TCP port of the listener for the slave's ERTS version
}

// Answerer decides who is answered. It is called from the goroutine that
// receives, so it must not block.
type Answerer interface {
	// Answer returns an offer, or an error: then the slave hears nothing, and the
	// text of the error is logged as the reason, unless it wraps ErrUnlogged.
	Answer(Query) (Offer, error)
}

// ErrUnlogged: the query is not answered, and that is not worth a line.
var ErrUnlogged = errors.New("not answered")

// Rate limits on answers where DiscoveryOptions has zero.
const (
	DefaultAnswersPerAddress = 200
	DefaultAnswerBurst       = 1024
	DefaultAnswers           = 20000
)

// DiscoveryOptions is what a Discovery is made of.
type DiscoveryOptions struct {
	Answerer Answerer
	// Pace is the time between the answers of servers that are neighbours in a
	// slave's order. Zero: all answer at once, and the slave takes any of them.
	Pace   time.Duration
	Logger hclog.Logger // nil: nothing is logged

	// AnswersPerAddress is how many requests a second of one source address are looked
	// at in the long run, and AnswerBurst how many at once. Many slaves may share one
	// address, and each asks three times. Zero: 200 and 1024.
	AnswersPerAddress, AnswerBurst int
	// Answers is how many answers a second all sources get together. Zero: 20,000.
	Answers int
}

// DiscoveryStats counts since New.
type DiscoveryStats struct {
	Requests  uint64 // well-formed requests
	Answers   uint64 // replies sent
	Refused   uint64 // requests that the Answerer refused
	Malformed uint64 // datagrams that are no request, or from an address that cannot be answered
	Dropped   uint64 // datagrams that the kernel dropped: no requests, by their first bytes, or the socket's buffer was full; as of the latest that it did not drop
	Limited   uint64 // requests not answered because of a rate limit
	Failed    uint64 // replies that could not be sent
}

// How long a search is remembered after its latest request, and how many are.
//
// A stock slave repeats a search every 500 ms while servers answer but none has
// priority 0, and at once after a pass in which all of them refused TCP. A server
// that swallows packets holds it up for 15 s (erl_prim_loader:tcp_timeout/0), so
// 20 s keeps counting over one of those. Only after silence does it sleep longer,
// 10 s and then 60 s, and then nothing of ours is on its ignore list. A search
// that was forgotten too early costs the slave one round of 500 ms for each byte
// that it ignores already: it asks again at once, and the counting goes on. More
// than needed would be worse: the next search of another boot may have the same
// source port, behind one address with many slaves, and would not be told 0 at
// first.
const (
	searchMemory = 20 * time.Second
	maxSearches  = 1 << 16
	maxBuckets   = 1 << 14
)

// search is what is remembered of one search, which is one source address and
// port: the client keeps one socket for it.
type search struct {
	answered       int // answers so far
	rank, lastRank int // of the first answer: repeats are paced by them
	latest         time.Time
}

// Discovery answers slaves that look for a boot server. It may serve several
// sockets at once.
type Discovery struct {
	options  DiscoveryOptions // no zeros, but for Pace
	refusals *refusals
	debug    *debugLog
	count    discoveryCounters

	mu       sync.Mutex // guards what follows
	searches aging[netip.AddrPort, search]
	buckets  aging[netip.Addr, bucket]
	all      bucket
}

// discoveryCounters are those of DiscoveryStats.
type discoveryCounters struct {
	requests, answers, refused, malformed, dropped, limited, failed atomic.Uint64
}

// NewDiscovery makes a Discovery. It starts nothing.
func NewDiscovery(options DiscoveryOptions) *Discovery {
	if options.Logger == nil {
		options.Logger = hclog.NewNullLogger()
	}
	options.AnswersPerAddress = positive(options.AnswersPerAddress, DefaultAnswersPerAddress)
	options.AnswerBurst = positive(options.AnswerBurst, DefaultAnswerBurst)
	options.Answers = positive(options.Answers, DefaultAnswers)
	// A bucket left alone for this long is full, as a new one is.
	refill := time.Duration(options.AnswerBurst) * time.Second / time.Duration(options.AnswersPerAddress)
	return &Discovery{
		options:  options,
		refusals: &refusals{logger: options.Logger},
		debug:    &debugLog{logger: options.Logger},
		searches: aging[netip.AddrPort, search]{period: searchMemory, limit: maxSearches},
		buckets:  aging[netip.Addr, bucket]{period: refill, limit: maxBuckets},
	}
}

// positive returns n, or the default when n is not positive.
func positive[N int | time.Duration](n, otherwise N) N {
	if n > 0 {
		return n
	}
	return otherwise
}

// Stats returns the counters.
func (d *Discovery) Stats() DiscoveryStats {
	return DiscoveryStats{
		Requests:  d.count.requests.Load(),
		Answers:   d.count.answers.Load(),
		Refused:   d.count.refused.Load(),
		Malformed: d.count.malformed.Load(),
		Dropped:   d.count.dropped.Load(),
		Limited:   d.count.limited.Load(),
		Failed:    d.count.failed.Load(),
	}
}

// Serve answers what arrives on a socket made by ListenDiscovery, and closes it.
// It returns nil when ctx has ended, and an error when the socket fails. Answers
// that were still waiting for their time are dropped.
func (d *Discovery) Serve(ctx context.Context, conn *net.UDPConn) error {
	ctx, cancel := context.WithCancel(ctx)
	out := newOutbox(conn, d.sent)
	var running sync.WaitGroup
	running.Go(func() { out.run(ctx) })
	running.Go(func() {
		<-ctx.Done()
		_ = conn.Close()
	})
	err := d.receive(ctx, conn, out)
	cancel()
	running.Wait()
	d.refusals.close()
	return err
}

func (d *Discovery) sent(err error) {
	if err != nil {
		d.count.failed.Add(1)
		d.debug.log(time.Now(), "discovery reply not sent", func() []any { return []any{"error", err} })
		return
	}
	d.count.answers.Add(1)
}

// receiveBatch is how many datagrams are taken from a socket at once (recvmmsg(2)): in a flood
// that costs a third of taking them one by one, and the buffer is emptied as much
// faster.
const receiveBatch = 64

// receive reads datagrams until the socket is closed. One bad datagram, or an
// error that passes, never ends it.
func (d *Discovery) receive(ctx context.Context, conn *net.UDPConn, out *outbox) error {
	var pause backoff
	socket := ipv4.NewPacketConn(conn)
	batch := make([]ipv4.Message, receiveBatch)
	for i := range batch {
		batch[i] = ipv4.Message{Buffers: [][]byte{make([]byte, maxQuery+1)}, OOB: controlSpace()}
	}
	drops := uint32(0)
	for {
		n, err := socket.ReadBatch(batch, 0)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EBADF) {
				return fmt.Errorf("receive discovery requests: %w", err)
			}
			d.options.Logger.Warn("receive discovery requests", "error", err)
			pause.wait(ctx)
			continue
		}
		pause.reset()
		for i := range batch[:n] {
			came := parseArrival(batch[i].OOB[:batch[i].NN])
			if came.drops != 0 {
				d.count.dropped.Add(uint64(came.drops - drops))
				drops = came.drops
			}
			d.receiveOne(out, &batch[i], came.asked)
		}
	}
}

// receiveOne handles one datagram. asked is the address of ours that it was sent to, if that is known.
func (d *Discovery) receiveOne(out *outbox, m *ipv4.Message, asked netip.Addr) {
	version, ok := parseQuery(m.Buffers[0][:m.N])
	from, isUDP := m.Addr.(*net.UDPAddr)
	if !ok || !isUDP || m.Flags&syscall.MSG_TRUNC != 0 {
		d.count.malformed.Add(1)
		return
	}
	slave := from.AddrPort()
	slave = netip.AddrPortFrom(slave.Addr().Unmap(), slave.Port())
	if !answerable(slave) {
		d.count.malformed.Add(1)
		return
	}
	d.answer(out, slave, asked, version)
}

// answer handles one well-formed request. A source that asks too often costs little: it is
// found out before anything is asked or made for it, whether or not it may boot.
func (d *Discovery) answer(out *outbox, slave netip.AddrPort, source netip.Addr, erts []byte) {
	d.count.requests.Add(1)
	now := time.Now()
	if !d.admit(now, slave.Addr()) {
		d.count.limited.Add(1)
		d.refusals.log(now, slave.Addr(), "too many requests", "discovery not answered", "")
		return
	}
	version := string(erts)
	asked := source
	if !asked.IsValid() { // a socket that does not say it
		asked = out.conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	}
	offer, err := d.options.Answerer.Answer(Query{Slave: slave, Asked: asked, ERTS: version})
	if err != nil {
		d.count.refused.Add(1)
		if errors.Is(err, ErrUnlogged) {
			return
		}
		d.refusals.log(now, slave.Addr(), err.Error(), "discovery not answered", version)
		return
	}
	s, ok := d.enter(now, slave, offer)
	if !ok {
		d.count.limited.Add(1)
		d.refusals.log(now, slave.Addr(), "too many requests of all slaves", "discovery not answered", version)
		return
	}
	priority, delay := Pace(s.rank, s.lastRank, s.answered, d.options.Pace)
	a := answer{due: now.Add(delay), to: slave, source: source}
	a.length = len(appendReply(a.bytes[:0], priority, offer.Port, version))
	out.put(now, a)
}

// admit counts one request in the limit of its source.
func (d *Discovery) admit(now time.Time, source netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, _ := d.buckets.get(now, source)
	if !b.take(now, d.options.AnswersPerAddress, d.options.AnswerBurst) {
		return false // what is remembered says so also the next time
	}
	d.buckets.put(now, source, b)
	return true
}

// enter counts one answer in the limit of all and in the searches. It returns the
// search as it was before.
func (d *Discovery) enter(now time.Time, slave netip.AddrPort, offer Offer) (search, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// One second's worth may come at once: a site that is switched on.
	if !d.all.take(now, d.options.Answers, d.options.Answers) {
		return search{}, false
	}
	s, known := d.searches.get(now, slave)
	if !known || now.Sub(s.latest) > searchMemory {
		s = search{rank: offer.Rank, lastRank: offer.LastRank}
	}
	next := s
	next.answered++
	next.latest = now
	d.searches.put(now, slave, next)
	return s, true
}
