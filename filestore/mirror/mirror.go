package mirror

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/filestore"
)

// Defaults of Options.
const (
	DefaultParallel = 4
	DefaultStall    = 5 * time.Second
)

// Bounds of a Pull.
const (
	maxPeers       = 64                     // further ones are not asked: a set of peers is a uint64
	streamsPerPeer = 2                      // one sends while our side of the other is busy
	bigBlob        = 1 << 20                // bytes; larger blobs are fetched alone and resumed
	batchBytes     = 4 << 20                // bytes expected of one batch
	batchBlobs     = 512                    // blobs of one batch
	unknownSize    = 64 << 10               // bytes a blob of unknown size is taken for
	commitEvery    = 2 * time.Second        // how much work a crash undoes
	turn           = 250 * time.Millisecond // how often peers are asked for and progress is reported
	leftFor        = 10 * time.Second       // until a peer that was left is tried again
	maxStrikes     = 3                      // failures in a row, or wrong blobs, after which a peer is left
	strikePause    = 50 * time.Millisecond  // times the strikes: before the next request
	hungBytes      = 4 << 10                // fewer in Options.Stall: the peer hangs
	slowRate       = 512 << 10              // bytes/s below which a peer may count as slow
	slowFactor     = 8                      // and another is this many times as fast
	hashRate       = 64 << 20               // bytes/s at least at which a peer verifies before it sends
)

// Peer is how to reach the Handler of one server.
type Peer struct {
	ID string
	// Client's Transport is used, and nothing else of it: a Pull bounds each step by
	// itself and follows no redirection. It should be the same each time, since it holds
	// the connections. nil means http.DefaultTransport.
	Client *http.Client
	// URL is what /v1/blobs is appended to, like http://10.0.0.2:4381.
	URL string
}

// Options say where blobs go and who may have them.
type Options struct {
	Store *filestore.Store
	// Peers returns the servers that are alive; the first 64 count. It is asked
	// again several times a second while a Pull runs, and must not block.
	Peers func() []Peer
	// Parallel is how many streams all Pulls together have open at once. Zero means
	// DefaultParallel. More helps when the network has a long delay.
	Parallel int
	// Stall is the time without a sign of life after which a peer is left. Zero
	// means DefaultStall. A reply to a request for a big blob may take longer by
	// its size / 64 MiB/s, since the peer may have to hash it first.
	Stall time.Duration
	// Logger; nil means none.
	Logger hclog.Logger
}

// Mirror pulls blobs from peers. All methods may be called from any goroutine.
type Mirror struct {
	opts  Options
	log   hclog.Logger
	slots chan struct{} // one element for each stream

	mu      sync.Mutex
	claims  map[eboot.Digest]*pull // blobs under way, from when they are asked for until they are committed
	changed chan struct{}          // closed by wake: blobs came, went back or were given up
}

// New returns a Mirror. It starts nothing.
func New(opts Options) *Mirror {
	if opts.Parallel <= 0 {
		opts.Parallel = DefaultParallel
	}
	if opts.Stall <= 0 {
		opts.Stall = DefaultStall
	}
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	return &Mirror{
		opts:    opts,
		log:     opts.Logger,
		slots:   make(chan struct{}, opts.Parallel),
		claims:  make(map[eboot.Digest]*pull),
		changed: make(chan struct{}),
	}
}

// wake makes everybody look again. mu must be held.
func (m *Mirror) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Progress of one Pull. Numbers of bytes are those of whole blobs, and what there
// is of big ones; they fall when a copy turns out to be wrong. A size that was not
// known counts once it is.
type Progress struct {
	Blobs, Bytes               int64 // to fetch when the Pull began
	FetchedBlobs, FetchedBytes int64 // since then: verified, and durable within two seconds
	Peers                      int   // that are being asked now
}

// Pull fetches those of blobs that the store lacks from whichever peers have
// them. The values of blobs are sizes in bytes; -1 is a manifest, whose size is
// not known and at most eboot.MaxManifestSize. blobs must not be modified
// meanwhile. report, when not nil, is called from this goroutine about four times a
// second and once at the end, unless nothing was begun.
//
// Until release is called, nothing of blobs is collected, whether it was there
// before or came now, and also after an error. release is never nil, must be
// called, and may be called twice.
//
// After nil, the store has all of blobs. Errors: eboot.ErrUnavailable when no
// peer has some blob, and everything else was fetched: the text says how many are
// missing and what became of each peer; eboot.ErrUnavailable, too, when the disk
// is full, before anything is fetched when the sizes alone tell so;
// eboot.ErrInvalid for a size below -1 or above eboot.MaxFileSize; that of ctx;
// that of the disk. Nothing unfinished is left on the disk; a further Pull goes on
// from what was committed.
func (m *Mirror) Pull(ctx context.Context, blobs map[eboot.Digest]int64, report func(Progress)) (release func(), err error) {
	return m.PullFrom(ctx, "", blobs, report)
}

// PullFrom is Pull from the peer of that ID alone, which is known to have them: another
// one that is asked in vain may hang. An empty id means all peers.
func (m *Mirror) PullFrom(ctx context.Context, id string, blobs map[eboot.Digest]int64, report func(Progress)) (release func(), err error) {
	guard := m.opts.Store.Ingest()
	release = sync.OnceFunc(func() { _ = guard.Close() }) // it never held a file
	guard.Protect(maps.Keys(blobs))
	if report == nil {
		report = func(Progress) {}
	}
	p, err := m.newPull(blobs, report)
	if err == nil {
		p.from = id
		err = p.run(ctx)
	}
	if err != nil {
		return release, fmt.Errorf("pull blobs: %w", err)
	}
	return release, nil
}

// newPull looks for what the store lacks.
func (m *Mirror) newPull(blobs map[eboot.Digest]int64, report func(Progress)) (*pull, error) {
	p := &pull{mirror: m, report: report, pending: make(map[shelf][]*item)}
	for d, size := range blobs {
		if size < absent || size > eboot.MaxFileSize {
			return nil, fmt.Errorf("blob %s: size %d: %w", d.Short(), size, eboot.ErrInvalid)
		}
		if !m.opts.Store.Has(d) {
			p.shelve(&item{digest: d, size: size})
			p.open++
			p.total.Bytes += max(0, size)
		}
	}
	p.total.Blobs = int64(p.open)
	if p.open == 0 {
		return p, nil
	}
	room, err := m.opts.Store.Room()
	if err != nil {
		return nil, err
	}
	if p.total.Bytes > room {
		return nil, fmt.Errorf("%d blobs with %d MiB are missing, and the disk has room for %d MiB: %w", p.open, p.total.Bytes>>20, room>>20, eboot.ErrUnavailable)
	}
	return p, nil
}
