package gossip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"eboot"
	"eboot/internal/fsutil"
)

const (
	peersFileVersion = 1
	maxPeersFile     = 64 << 10
	maxPeers         = maxAlive + maxLost
)

// peer is where a server was last seen.
type peer struct {
	ID      string         `json:"id"`
	Address netip.AddrPort `json:"address"` // of its gossip
}

type peersFile struct {
	Version int    `json:"version"`
	Peers   []peer `json:"peers"`
}

// decodePeers reads a peers file. Errors wrap eboot.ErrInvalid.
func decodePeers(b []byte) ([]peer, error) {
	var f peersFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", eboot.ErrInvalid, err)
	}
	if f.Version != peersFileVersion || len(f.Peers) > maxPeers {
		return nil, fmt.Errorf("version %d with %d servers: %w", f.Version, len(f.Peers), eboot.ErrInvalid)
	}
	for _, p := range f.Peers {
		if p.ID == "" || len(p.ID) > maxID || !plain(p.ID) || !p.Address.IsValid() || p.Address.Addr().Zone() != "" || p.Address.Port() == 0 {
			return nil, fmt.Errorf("server %q at %v: %w", p.ID, p.Address, eboot.ErrInvalid)
		}
	}
	return f.Peers, nil
}

func encodePeers(peers []peer) ([]byte, error) {
	b, err := json.MarshalIndent(peersFile{Version: peersFileVersion, Peers: peers}, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// readPeers returns nothing when there is no file.
func readPeers(path string) ([]peer, error) {
	if path == "" {
		return nil, nil
	}
	b, err := fsutil.ReadSmall(path, maxPeersFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	peers, err := decodePeers(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return peers, nil
}

func writePeers(path string, content []byte) error {
	return fsutil.WriteAtomic(path, 0o600, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}
