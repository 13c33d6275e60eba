package leaf

// Count returns how many leaves are kept, and how many of them another root has signed than this one.
func (k *Keeper) Count(root string) (all, others int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.entries {
		if leaf := e.current().leaf; leaf != nil {
			all++
			if leaf.RootID != root {
				others++
			}
		}
	}
	return all, others
}
