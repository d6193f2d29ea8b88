"""What the spaces of one machine share and page tables do not show: pages, files, swap, devices."""
