package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"eboot"
)

// DefaultAddress is where a server's API listens unless it is configured otherwise.
const DefaultAddress = "http://127.0.0.1:4380"

// DefaultTimeout bounds a call that says nothing else.
const DefaultTimeout = 30 * time.Second

// ClientOptions say where the servers are.
type ClientOptions struct {
	// Addresses: https://HOST:PORT, http://HOST:PORT or unix:///PATH of servers of one
	// cluster, tried in order. Empty: DefaultAddress.
	Addresses []string
	// Token is shown with every request; empty: none.
	Token string
	// TLS returns the configuration for connections to a host, which says whose certificates
	// are trusted and which one is shown. nil: this machine's authorities, none.
	TLS func(host string) *tls.Config
	// Timeout bounds every call but uploads, downloads and streams. Zero: DefaultTimeout.
	Timeout time.Duration
	// ExpectGeneration accompanies every write; nil: none.
	ExpectGeneration *uint64
	// Stale: reads of the replicated state take what the server knows, however old.
	// It is not asked to make sure first, which needs a leader.
	Stale bool
	// OnStale is called with the reason when an answer may be older than what was
	// acknowledged. nil: nobody hears of it.
	OnStale func(reason string)
}

// Client calls the admin API. Its methods return errors that wrap the sentinel
// the server meant; eboot.ErrUnreachable when no address could be reached;
// eboot.ErrUnknownOutcome when a write was sent and no answer came back.
// With several addresses it moves on to the next server when one fails (moving.go).
// It may be used by several goroutines.
type Client struct {
	endpoints []endpoint
	preferred atomic.Int32 // index of the one that answered last
	timeout   time.Duration
	expect    *uint64
	stale     bool
	onStale   func(reason string)
}

// NewClient checks the addresses and connects to none of them.
// eboot.ErrInvalid names the address that cannot be understood.
func NewClient(o ClientOptions) (*Client, error) {
	c := &Client{timeout: o.Timeout, expect: o.ExpectGeneration, stale: o.Stale, onStale: o.OnStale}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	addresses := o.Addresses
	if len(addresses) == 0 {
		addresses = []string{DefaultAddress}
	}
	dial := dialPatience
	if len(addresses) > 1 {
		dial = dialPatienceOfSeveral
	}
	for _, a := range addresses {
		e, err := newEndpoint(a, dial, o)
		if err != nil {
			return nil, err
		}
		c.endpoints = append(c.endpoints, e)
	}
	return c, nil
}

// Close lets go of idle connections.
func (c *Client) Close() {
	for _, e := range c.endpoints {
		e.http.CloseIdleConnections()
	}
}

func (c *Client) header(write bool) http.Header {
	h := http.Header{}
	if write {
		h.Set(headerRequestID, uuid.NewString())
		if c.expect != nil {
			h.Set(headerExpectGeneration, strconv.FormatUint(*c.expect, 10))
		}
	}
	return h
}

// state is the query of a read of replicated state.
func (c *Client) state() url.Values {
	if c.stale {
		return url.Values{"stale": {"true"}}
	}
	return nil
}

// Whitelist returns every entry in order of prefix.
func (c *Client) Whitelist(ctx context.Context) (entries []eboot.WhitelistEntry, err error) {
	return entries, c.do(ctx, call{method: "GET", path: "/v1/whitelist", query: c.state()}, &entries)
}

// Allow adds or replaces whitelist entries, all or none.
func (c *Client) Allow(ctx context.Context, entries ...eboot.WhitelistEntry) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: "/v1/whitelist", body: AllowRequest{Entries: entries}, write: true}, &r)
}

// Deny removes whitelist entries, all or none.
func (c *Client) Deny(ctx context.Context, prefixes ...netip.Prefix) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: "/v1/whitelist/deny", body: DenyRequest{Prefixes: prefixes}, write: true}, &r)
}

// Check says whether slave is whitelisted.
func (c *Client) Check(ctx context.Context, slave netip.Addr) (r SlaveCheck, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/slaves/" + slave.String() + "/check", query: c.state()}, &r)
}

// Explain says step by step why slave would or would not boot.
func (c *Client) Explain(ctx context.Context, slave netip.Addr) (r eboot.Explanation, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/slaves/" + slave.String() + "/explain"}, &r)
}

// Channels returns every channel.
func (c *Client) Channels(ctx context.Context) (channels []eboot.Channel, err error) {
	return channels, c.do(ctx, call{method: "GET", path: "/v1/channels", query: c.state()}, &channels)
}

// Channel returns one channel, or eboot.ErrNotFound.
func (c *Client) Channel(ctx context.Context, name string) (r eboot.Channel, err error) {
	return r, c.do(ctx, call{method: "GET", path: channelPath(name), query: c.state()}, &r)
}

// SetChannel moves a channel to a bundle, sets its options, or both.
func (c *Client) SetChannel(ctx context.Context, name string, set ChannelSet) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "PUT", path: channelPath(name), body: set, write: true}, &r)
}

// UndoChannel takes the latest moves of a channel back; again, it makes them anew.
func (c *Client) UndoChannel(ctx context.Context, name string) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: channelPath(name) + "/undo", write: true}, &r)
}

// Bundles returns every bundle in order of name, version and ERTS.
func (c *Client) Bundles(ctx context.Context) (bundles []BundleDetail, err error) {
	return bundles, c.do(ctx, call{method: "GET", path: "/v1/bundles", query: c.state()}, &bundles)
}

// Bundle returns the bundles of ref, one for each ERTS version, or eboot.ErrNotFound.
func (c *Client) Bundle(ctx context.Context, ref eboot.Ref) (details []BundleDetail, err error) {
	return details, c.do(ctx, call{method: "GET", path: bundlePath(ref), query: c.state()}, &details)
}

// BootScript returns the boot script of ref for one ERTS version, or (empty) the only one.
func (c *Client) BootScript(ctx context.Context, ref eboot.Ref, erts string) (r BootScript, err error) {
	query := url.Values{}
	maps.Copy(query, c.state())
	if erts != "" {
		query.Set("erts", erts)
	}
	return r, c.do(ctx, call{method: "GET", path: bundlePath(ref) + "/boot", query: query}, &r)
}

// ProtectBundle has a bundle neither removed nor collected, or allows both again.
func (c *Client) ProtectBundle(ctx context.Context, ref eboot.Ref, protected bool) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "PUT", path: bundlePath(ref) + "/protected", body: ProtectedSet{Protected: protected}, write: true}, &r)
}

// RemoveBundle takes a bundle out, for one ERTS version or (empty) all.
func (c *Client) RemoveBundle(ctx context.Context, ref eboot.Ref, erts string, force bool) (r WriteResult, err error) {
	query := url.Values{}
	if erts != "" {
		query.Set("erts", erts)
	}
	if force {
		query.Set("force", "true")
	}
	return r, c.do(ctx, call{method: "DELETE", path: bundlePath(ref), query: query, write: true}, &r)
}

func channelPath(name string) string  { return "/v1/channels/" + url.PathEscape(name) }
func bundlePath(ref eboot.Ref) string { return "/v1/bundles/" + url.PathEscape(ref.String()) }

// VerifyBundle has a server hash every blob of ref; progress may be nil. The
// result has Done set.
func (c *Client) VerifyBundle(ctx context.Context, ref eboot.Ref, progress func(VerifyProgress)) (VerifyProgress, error) {
	var last VerifyProgress
	err := c.stream(ctx, "POST", bundlePath(ref)+"/verify", func(line []byte) error {
		last = VerifyProgress{}
		if err := json.Unmarshal(line, &last); err != nil {
			return err
		}
		if progress != nil {
			progress(last)
		}
		return nil
	})
	if err == nil && !last.Done {
		err = fmt.Errorf("verify %s: the server broke the reply off; see its log: %w", ref, eboot.ErrUnavailable)
	}
	return last, err
}

// stream reads a reply of JSON lines.
func (c *Client) stream(ctx context.Context, method, path string, each func(line []byte) error) error {
	response, server, err := c.open(ctx, call{method: method, path: path})
	if err != nil {
		return err
	}
	cut, err := eachLine(response, each)
	if cut != nil {
		return fmt.Errorf("server %s: stream: %v: %w", server, cut, eboot.ErrUnreachable)
	}
	return err
}

// Status returns what a server says of itself and its Raft group.
func (c *Client) Status(ctx context.Context) (r eboot.ClusterStatus, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/cluster"}, &r)
}

// Readiness says whether a server can boot slaves at once.
func (c *Client) Readiness(ctx context.Context) (r eboot.Readiness, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/cluster/ready", accept: []int{http.StatusServiceUnavailable}}, &r)
}

// Members returns what the servers together know of each of them.
func (c *Client) Members(ctx context.Context) (r eboot.Membership, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/cluster/members"}, &r)
}

// InitCluster has the server at the first address found a cluster of its own. No
// other is asked in its place: two would found two clusters.
func (c *Client) InitCluster(ctx context.Context) (r ClusterFounded, err error) {
	return r, c.do(ctx, call{method: "POST", path: "/v1/cluster/init", once: true, here: true}, &r)
}

// Self stands for the server at the first address in DrainServer.
const Self = "self"

// DrainServer has a server leave its slaves to the others, or take them again. id is
// that of the server, a prefix of it, or Self.
func (c *Client) DrainServer(ctx context.Context, id string, drained bool) (r WriteResult, err error) {
	if err := eboot.CheckName("server", id); err != nil {
		return r, err
	}
	path := "/v1/cluster/members/" + id + "/drained"
	return r, c.do(ctx, call{method: "PUT", path: path, body: DrainedSet{Drained: drained}, write: true, here: id == Self}, &r)
}

// TransferLeadership makes another server lead: to, or (empty) any.
func (c *Client) TransferLeadership(ctx context.Context, to string) (r LeaderTransferred, err error) {
	return r, c.do(ctx, call{method: "POST", path: "/v1/cluster/transfer", body: LeaderTransfer{To: to}, once: true}, &r)
}

// RemoveServer takes a server out for good; with replace, the one that waits at its
// address takes its place.
func (c *Client) RemoveServer(ctx context.Context, id string, replace bool) (r WriteResult, err error) {
	if err := eboot.CheckName("server", id); err != nil {
		return r, err
	}
	query := url.Values{}
	if replace {
		query.Set("replace", "true")
	}
	return r, c.do(ctx, call{method: "DELETE", path: "/v1/cluster/members/" + id, query: query, write: true}, &r)
}

// SaveSnapshot writes the replicated state to w. A snapshot that was cut off is
// eboot.ErrUnreachable.
func (c *Client) SaveSnapshot(ctx context.Context, w io.Writer) (SnapshotInfo, error) {
	var info SnapshotInfo
	response, _, err := c.open(ctx, call{method: "GET", path: "/v1/snapshot"})
	if err != nil {
		return info, err
	}
	defer response.Body.Close()
	if err := json.Unmarshal([]byte(response.Header.Get("Eboot-Snapshot")), &info); err != nil {
		return info, fmt.Errorf("snapshot: answer without description: %w", eboot.ErrUnavailable)
	}
	n, err := io.Copy(w, response.Body)
	if err == nil && n != response.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return info, fmt.Errorf("snapshot: %v: %w", err, eboot.ErrUnreachable)
	}
	return info, nil
}

// RestoreSnapshot replaces the replicated state by what r holds.
func (c *Client) RestoreSnapshot(ctx context.Context, r io.Reader, force bool) (SnapshotInfo, error) {
	var info SnapshotInfo
	e, err := c.pick(ctx)
	if err != nil {
		return info, err
	}
	query := url.Values{"force": {strconv.FormatBool(force)}}
	response, err := e.send(ctx, "POST", "/v1/snapshot", query, c.header(true), r, true)
	if err != nil {
		return info, err
	}
	return info, decode(response, nil, &info)
}

// ParseAddresses splits what EBOOT_ADDRESS and --address hold: addresses
// separated by commas or spaces. A bare HOST:PORT means http.
func ParseAddresses(text string) []string {
	fields := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
	for i, f := range fields {
		if !strings.Contains(f, "://") {
			fields[i] = "http://" + f
		}
	}
	return fields
}
